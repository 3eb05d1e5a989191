/* Structs with every kind of field that a kernel's have. */
typedef unsigned long long u64; typedef unsigned int u32; typedef unsigned short u16; typedef unsigned char u8;
struct _LIST_ENTRY { struct _LIST_ENTRY *Flink; struct _LIST_ENTRY *Blink; };
struct _UNICODE_STRING { u16 Length; u16 MaximumLength; wchar_t *Buffer; };
enum _STATE { Initialized, Ready = 7, Gone = -2 };
union _FAST { void *Object; u64 RefCnt : 4; u64 Value; };
struct _CLIENT_ID { void *UniqueProcess; void *UniqueThread; };
struct _EPROCESS {
    struct _LIST_ENTRY ActiveProcessLinks;
    struct _CLIENT_ID Cid[2];
    char ImageFileName[15];
    u8 Priority;
    union { u32 Flags; struct { u32 NoDebug : 1; u32 Kind : 3; u32 Rest : 28; }; };
    enum _STATE State;
    union _FAST Token;
    volatile long Count;
    const struct _UNICODE_STRING *Name;
    struct { u64 Low; u32 High; } Times[3];
    int (*Callback)(struct _EPROCESS *, int);
    float Load; double Sum; signed char Sign; long long Wide; u16 Table[4][3];
    struct _LATER *Later;
};
struct _LATER { struct _EPROCESS Inside; u64 End; };
struct _EPROCESS PsFirst; struct _LATER PsLater; enum _STATE PsState; u32 NtBuildNumber = 19041;
const u32 PsConstant = 5;
int NtClose(struct _EPROCESS *p) { return p->Priority + (int)PsState; }
int NtOpen(struct _LATER *p) { return NtClose(&p->Inside) + (int)PsConstant; }

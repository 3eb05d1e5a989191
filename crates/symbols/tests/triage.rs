//! The built-in layouts against real bytes: what a kernel of build 19041.804 wrote into a small memory dump, in which it tells
//! itself where some of its structs and fields lie.
//!
//! Source: `TRIAGE_DUMP64` and `KDDEBUGGER_DATA64` of the public headers `ntiodump.h` and `wdbgexts.h`.

use ramsift_symbols::layouts::Layouts;
use ramsift_symbols::{SymbolTable, isf};

/// The kernel's symbol file.
const GUID: &str = "5278AFF86C341677D7D7835C85B7B844";
/// Where its image began.
const BASE: u64 = 0xffff_f804_7ba0_0000;

struct Dump {
    bytes: Vec<u8>,
    table: SymbolTable,
}

impl Dump {
    fn new() -> Self {
        let packed = include_bytes!("../testdata/triage-19041-804.xz");
        let layouts = Layouts::built_in().expect("sound");
        Self {
            bytes: isf::decompress(packed).expect("xz").into_owned(),
            table: layouts.kernel(GUID, BASE).expect("known").expect("sound"),
        }
    }

    fn number(&self, at: usize, bytes: usize) -> u64 {
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(&self.bytes[at..at + bytes]);
        u64::from_le_bytes(raw)
    }

    /// A field of the header of small dumps, which lies at 0x2000.
    fn header(&self, at: usize) -> usize {
        usize::try_from(self.number(0x2000 + at, 4)).expect("an offset")
    }

    /// A field of a struct that begins at an offset of the dump.
    fn field(&self, start: usize, ty: &str, path: &str) -> u64 {
        let f = self.table.types().field(ty, path).expect(path);
        let from = start + usize::try_from(f.offset).expect("an offset");
        f.value(&self.bytes[from..]).expect("a number")
    }

    fn symbol(&self, name: &str) -> u64 {
        self.table.address(name).expect(name).0
    }

    fn offset(&self, ty: &str, path: &str) -> u64 {
        self.table.types().field(ty, path).expect(path).offset
    }
}

#[test]
fn globals_lie_where_the_kernel_says() {
    let d = Dump::new();
    assert!(d.bytes.starts_with(b"PAGEDU64"));
    // The dump's own header.
    assert_eq!(d.number(0x18, 8), d.symbol("MmPfnDatabase"));
    assert_eq!(d.number(0x20, 8), d.symbol("PsLoadedModuleList"));
    assert_eq!(d.number(0x28, 8), d.symbol("PsActiveProcessHead"));
    assert_eq!(d.number(0x80, 8), d.symbol("KdDebuggerDataBlock"));
    // The debugger's block.
    let block = d.header(0x70);
    assert_eq!(&d.bytes[block + 16..block + 20], b"KDBG");
    for (at, name) in [
        (0x48, "PsLoadedModuleList"),
        (0x50, "PsActiveProcessHead"),
        (0x58, "PspCidTable"),
        (0xc0, "MmPfnDatabase"),
    ] {
        assert_eq!(d.number(block + at, 8), d.symbol(name), "{name}");
    }
    assert_eq!(d.number(block + 0x18, 8), BASE);
}

#[test]
fn structs_are_as_long_and_fields_lie_where_the_kernel_says() {
    let d = Dump::new();
    let block = d.header(0x70);
    let size = |ty: &str| d.table.types().size_of(ty).expect(ty);
    // Processor, process and thread lie behind each other in the dump.
    let (prcb, process, thread, stack) = (
        d.header(0x1c),
        d.header(0x20),
        d.header(0x24),
        d.header(0x28),
    );
    assert_eq!((process - prcb) as u64, size("_KPRCB"));
    assert_eq!((thread - process) as u64, size("_EPROCESS"));
    assert_eq!((stack - thread) as u64, size("_ETHREAD"));
    assert_eq!(d.number(block + 0x2a8, 2), size("_EPROCESS"));
    assert_eq!(d.number(block + 0x2c0, 2), size("_ETHREAD"));
    for (at, ty, path) in [
        (0x2aa, "_EPROCESS", "Peb"),
        (0x2ac, "_EPROCESS", "InheritedFromUniqueProcessId"),
        (0x2ae, "_EPROCESS", "Pcb.DirectoryTableBase"),
        (0x29a, "_KTHREAD", "Teb"),
        (0x2a0, "_KTHREAD", "ApcState.Process"),
        (0x2a2, "_KTHREAD", "State"),
    ] {
        assert_eq!(d.number(block + at, 2), d.offset(ty, path), "{ty}.{path}");
    }
}

#[test]
fn the_process_and_the_thread_make_sense() {
    let d = Dump::new();
    let (process, thread) = (d.header(0x20), d.header(0x24));
    let p = |path| d.field(process, "_EPROCESS", path);
    let name =
        process + usize::try_from(d.offset("_EPROCESS", "ImageFileName")).expect("an offset");
    assert!(d.bytes[name..].starts_with(b"System\0"));
    assert_eq!(p("UniqueProcessId"), 4);
    assert_eq!(p("Pcb.Header.Type") & 0x7f, 3, "a process");
    assert_eq!(
        p("Pcb.DirectoryTableBase"),
        d.number(0x10, 8),
        "the dump's page table"
    );
    // The first of the list.
    assert_eq!(
        p("ActiveProcessLinks.Blink"),
        d.symbol("PsActiveProcessHead")
    );
    assert_eq!(p("ExitStatus"), 0x103, "STATUS_PENDING: it runs");
    assert_eq!((p("Peb"), p("ActiveThreads")), (0, 147));
    let t = |path| d.field(thread, "_ETHREAD", path);
    assert_eq!((t("Cid.UniqueProcess"), t("Cid.UniqueThread")), (4, 264));
    assert_eq!(t("Tcb.Header.Type") & 0x7f, 6, "a thread");
    assert_eq!(t("Tcb.State"), 2, "it runs");
    let links = p("ActiveProcessLinks.Flink");
    assert_eq!(
        t("Tcb.Process") >> 40,
        links >> 40,
        "in the pool, as other processes"
    );
    assert!((BASE..BASE + 0x104_6000).contains(&t("StartAddress")));
}

#[test]
fn all_drivers_are_read() {
    let d = Dump::new();
    let (list, count) = (d.header(0x30), d.header(0x34));
    let stride = (d.header(0x38) - list) / count;
    assert_eq!(count, 151);
    let ty = "_KLDR_DATA_TABLE_ENTRY";
    // The name's place and eight bytes, then the record.
    let driver = |i: usize| {
        let at = list + i * stride;
        let text = usize::try_from(d.number(at, 4)).expect("an offset");
        let len = usize::try_from(d.number(text, 4)).expect("a length");
        let units = d.bytes[text + 4..text + 4 + 2 * len].chunks_exact(2);
        let units: Vec<u16> = units.map(|u| u16::from_le_bytes([u[0], u[1]])).collect();
        let own = |path| d.field(at + 8, ty, path);
        (
            String::from_utf16_lossy(&units),
            own("DllBase"),
            own("SizeOfImage"),
        )
    };
    let all: Vec<_> = (0..count).map(driver).collect();
    let root = "\\SystemRoot\\system32\\";
    assert_eq!(all[0], (format!("{root}ntoskrnl.exe"), BASE, 0x104_6000));
    assert_eq!(
        all[1],
        (format!("{root}hal.dll"), 0xffff_f804_7944_0000, 0x6000)
    );
    let last = format!("{}drivers\\rdpbus.sys", root.replace("system", "System"));
    assert_eq!(all[150], (last, 0xffff_f804_8b68_0000, 0xe000));
    for (name, base, size) in &all {
        let low = name.to_ascii_lowercase();
        assert!(
            low.ends_with(".sys") || low.ends_with(".dll") || low.ends_with(".exe"),
            "{name}"
        );
        assert!(
            base % 4096 == 0 && base >> 47 == 0x1_ffff,
            "{name} at {base:#x}"
        );
        assert!(
            size % 4096 == 0 && (0x1000..0x1000_0000).contains(size),
            "{name}: {size:#x}"
        );
    }
    // No two overlap.
    let mut places: Vec<_> = all.iter().map(|d| (d.1, d.1 + d.2)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|w| w[0].1 <= w[1].0));
}

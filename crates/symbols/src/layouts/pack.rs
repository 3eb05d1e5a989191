//! Makes a table of layouts.

use super::{Build, Table, Variant};
use crate::isf::{IsfError, decompress};
use crate::pdb::{self, PdbError};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// Types that views read. Those inside of them come along.
const TYPES: &[&str] = &[
    "_CLIENT_ID",
    "_CMHIVE",
    "_CM_KEY_BODY",
    "_CM_KEY_CONTROL_BLOCK",
    "_CM_KEY_HASH",
    "_CM_KEY_NODE",
    "_CM_KEY_VALUE",
    "_CM_NAME_CONTROL_BLOCK",
    "_CONTROL_AREA",
    "_CURDIR",
    "_DBGKD_GET_VERSION64",
    "_DEVICE_MAP",
    "_DEVICE_NODE",
    "_DEVICE_OBJECT",
    "_DEVOBJ_EXTENSION",
    "_DISPATCHER_HEADER",
    "_DRIVER_EXTENSION",
    "_DRIVER_OBJECT",
    "_DUAL",
    "_EJOB",
    "_EPROCESS",
    "_ESERVERSILO_GLOBALS",
    "_ETHREAD",
    "_EWOW64PROCESS",
    "_EX_FAST_REF",
    "_EX_PUSH_LOCK",
    "_EX_RUNDOWN_REF",
    "_FAST_IO_DISPATCH",
    "_FILE_OBJECT",
    "_HANDLE_TABLE",
    "_HANDLE_TABLE_ENTRY",
    "_HBASE_BLOCK",
    "_HHIVE",
    "_HIVE_LIST_ENTRY",
    "_HMAP_DIRECTORY",
    "_HMAP_ENTRY",
    "_HMAP_TABLE",
    "_IMAGE_DOS_HEADER",
    "_KAPC_STATE",
    "_KDPC",
    "_KIDTENTRY64",
    "_KLDR_DATA_TABLE_ENTRY",
    "_KMUTANT",
    "_KPCR",
    "_KPRCB",
    "_KPROCESS",
    "_KSYSTEM_TIME",
    "_KTHREAD",
    "_KTIMER",
    "_KUSER_SHARED_DATA",
    "_LARGE_INTEGER",
    "_LDR_DATA_TABLE_ENTRY",
    "_LIST_ENTRY",
    "_LUID",
    "_MI_CONTROL_AREA_WAIT_BLOCK",
    "_MI_HARDWARE_STATE",
    "_MI_SECTION_IMAGE_INFORMATION",
    "_MI_PARTITION",
    "_MI_SYSTEM_IMAGE_STATE",
    "_MI_SYSTEM_INFORMATION",
    "_MMADDRESS_NODE",
    "_MMPAGING_FILE",
    "_MMPFN",
    "_MMPTE",
    "_MMPTE_HARDWARE",
    "_MMPTE_LIST",
    "_MMPTE_PROTOTYPE",
    "_MMPTE_SOFTWARE",
    "_MMPTE_SUBSECTION",
    "_MMPTE_TIMESTAMP",
    "_MMPTE_TRANSITION",
    "_MMSECTION_FLAGS",
    "_MMSECTION_FLAGS2",
    "_MMSUPPORT",
    "_MMSUPPORT_FULL",
    "_MMVAD",
    "_MMVAD_FLAGS",
    "_MMVAD_FLAGS1",
    "_MMVAD_FLAGS2",
    "_MMVAD_FLAGS3",
    "_MMVAD_LONG",
    "_MMVAD_SHORT",
    "_MM_AVL_TABLE",
    "_MM_GRAPHICS_VAD_FLAGS",
    "_MM_PRIVATE_VAD_FLAGS",
    "_MM_SESSION_SPACE",
    "_MM_SHARED_VAD_FLAGS",
    "_NT_TIB",
    "_OBJECT_CREATE_INFORMATION",
    "_OBJECT_DIRECTORY",
    "_OBJECT_DIRECTORY_ENTRY",
    "_OBJECT_HEADER",
    "_OBJECT_HEADER_AUDIT_INFO",
    "_OBJECT_HEADER_CREATOR_INFO",
    "_OBJECT_HEADER_EXTENDED_INFO",
    "_OBJECT_HEADER_HANDLE_INFO",
    "_OBJECT_HEADER_NAME_INFO",
    "_OBJECT_HEADER_PADDING_INFO",
    "_OBJECT_HEADER_PROCESS_INFO",
    "_OBJECT_HEADER_QUOTA_INFO",
    "_OBJECT_NAME_INFORMATION",
    "_OBJECT_SYMBOLIC_LINK",
    "_OBJECT_TYPE",
    "_OBJECT_TYPE_INITIALIZER",
    "_PEB",
    "_PEB_LDR_DATA",
    "_POOL_HEADER",
    "_POOL_TRACKER_BIG_PAGES",
    "_PS_PROTECTION",
    "_RTL_AVL_TREE",
    "_RTL_BALANCED_NODE",
    "_RTL_DRIVE_LETTER_CURDIR",
    "_RTL_USER_PROCESS_PARAMETERS",
    "_SECTION",
    "_SECTION_OBJECT_POINTERS",
    "_SECTION_IMAGE_INFORMATION",
    "_SEGMENT",
    "_SEP_LOGON_SESSION_REFERENCES",
    "_SEP_TOKEN_PRIVILEGES",
    "_SE_AUDIT_PROCESS_CREATION_INFO",
    "_SHARED_CACHE_MAP",
    "_SID",
    "_SID_AND_ATTRIBUTES",
    "_STRING",
    "_SUBSECTION",
    "_TEB",
    "_TOKEN",
    "_TOKEN_SOURCE",
    "_ULARGE_INTEGER",
    "_UNICODE_STRING",
    "_VACB",
    "_VACB_ARRAY_HEADER",
    "_VPB",
];

/// Globals that views read.
const GLOBALS: &[&str] = &[
    "CallbackListHead",
    "CmKeyObjectType",
    "CmNtCSDVersion",
    "CmpCallBackCount",
    "CmpHiveListHead",
    "CmpMachineHiveList",
    "CmpMasterHive",
    "EtwpActiveSystemLoggers",
    "EtwpDebuggerData",
    "EtwpGuidHashTable",
    "EtwpHostSiloState",
    "ExPoolState",
    "HalDispatchTable",
    "HalPrivateDispatchTable",
    "IoDeviceObjectType",
    "IoDriverObjectType",
    "IoFileObjectType",
    "IopBootDriverReinitializeQueueHead",
    "IopCdRomFileSystemQueueHead",
    "IopDiskFileSystemQueueHead",
    "IopDriverReinitializeQueueHead",
    "IopFsNotifyChangeQueueHead",
    "IopNetworkFileSystemQueueHead",
    "IopNotifyLastChanceShutdownQueueHead",
    "IopNotifyShutdownQueueHead",
    "IopRootDeviceNode",
    "IopTapeFileSystemQueueHead",
    "KdDebuggerDataBlock",
    "KdDebuggerEnabled",
    "KdDebuggerNotPresent",
    "KdVersionBlock",
    "KdpDataBlockEncoded",
    "KdpDebuggerDataListHead",
    "KeBootTime",
    "KeBugCheckCallbackListHead",
    "KeBugCheckReasonCallbackListHead",
    "KeNumberProcessors",
    "KeServiceDescriptorTable",
    "KeServiceDescriptorTableFilter",
    "KeServiceDescriptorTableShadow",
    "KeTimeIncrement",
    "KiArgumentTable",
    "KiInitialThread",
    "KiProcessorBlock",
    "KiServiceLimit",
    "KiServiceTable",
    "KiSystemCall64",
    "KiSystemCall64Shadow",
    "KiSystemServiceHandler",
    "KiWaitAlways",
    "KiWaitNever",
    "MiInvalidPteMask",
    "MiState",
    "MiSystemPartition",
    "MiVisibleState",
    "MmHighestPhysicalPage",
    "MmHighestUserAddress",
    "MmLastUnloadedDriver",
    "MmNonPagedPoolStart",
    "MmNumberOfPagingFiles",
    "MmPagedPoolEnd",
    "MmPagingFile",
    "MmPfnDatabase",
    "MmPhysicalMemoryBlock",
    "MmProtectToValue",
    "MmPteBase",
    "MmSectionObjectType",
    "MmSizeOfPagedPoolInBytes",
    "MmSystemRangeStart",
    "MmUnloadedDrivers",
    "MmUserProbeAddress",
    "MmVerifierData",
    "NonPagedPoolDescriptor",
    "NtBuildGUID",
    "NtBuildLab",
    "NtBuildLabEx",
    "NtBuildNumber",
    "NtBuildQfe",
    "NtGlobalFlag",
    "NtMajorVersion",
    "NtMinorVersion",
    "ObHeaderCookie",
    "ObTypeIndexTable",
    "ObpInfoMaskToOffset",
    "ObpKernelHandleTable",
    "ObpObjectTypes",
    "ObpRootDirectoryObject",
    "ObpTypeDirectoryObject",
    "ObpTypeObjectType",
    "PnpDeviceClassNotifyList",
    "PoolBigPageTable",
    "PoolBigPageTableSize",
    "PoolTrackTable",
    "PoolTrackTableSize",
    "PoolVector",
    "PopRegisteredPowerSettingCallbacks",
    "PsActiveProcessHead",
    "PsIdleProcess",
    "PsInitialSystemProcess",
    "PsLoadedModuleList",
    "PsNtosImageBase",
    "PsNtosImageEnd",
    "PsProcessType",
    "PsThreadType",
    "PsWin32CallBack",
    "PspCidTable",
    "PspCreateProcessNotifyRoutine",
    "PspCreateProcessNotifyRoutineCount",
    "PspCreateProcessNotifyRoutineExCount",
    "PspCreateThreadNotifyRoutine",
    "PspHostSiloGlobals",
    "PspJobList",
    "PspLoadImageNotifyRoutine",
    "PspPicoProviderRoutines",
    "PspSystemDlls",
    "SeCiCallbacks",
    "SeFileSystemNotifyRoutinesHead",
    "SeTokenObjectType",
    "SepLogonSessions",
    "g_CiCallbacks",
    "g_CiEnabled",
];

/// Whether a global is a function of the kernel's table of services: `NtCreateFile`. Their names tell which service an
/// entry of the table is.
fn is_service(name: &str) -> bool {
    let rest = name.strip_prefix("Nt");
    rest.is_some_and(|r| r.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Why no table was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file can't be unpacked.
    #[error("{name}: {source}")]
    Unpack {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: IsfError,
    },
    /// A file is no PDB.
    #[error("{name}: {source}")]
    Pdb {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: PdbError,
    },
    /// A file is no JSON.
    #[error("{name}: {source}")]
    Json {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file has neither kernels nor is one.
    #[error(
        "{name}: neither a file of facts (types, builds) nor the ISF of a Windows kernel: {missing} is missing"
    )]
    Neither {
        /// The file.
        name: String,
        /// What it should have.
        missing: &'static str,
    },
    /// The table could not be written.
    #[error("the table could not be compressed: {0}")]
    Write(std::io::Error),
}

/// Makes a table of files: each a file of facts, whose types are written as in the table, or the ISF or PDB of one kernel. The
/// first that tells of a kernel counts. `about` says where the facts come from.
///
/// Fails with [`PackError`] on the first file that is neither.
pub fn pack(about: &str, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, PackError> {
    let mut kernels = BTreeMap::new();
    for (name, data) in files {
        if pdb::is_pdb(data) {
            let value = pdb::to_isf(name, data).map_err(|source| PackError::Pdb {
                name: name.clone(),
                source,
            })?;
            isf(&value, &mut kernels).map_err(|missing| PackError::Neither {
                name: name.clone(),
                missing,
            })?;
            continue;
        }
        let json = decompress(data).map_err(|source| PackError::Unpack {
            name: name.clone(),
            source,
        })?;
        let value: Value = serde_json::from_slice(&json).map_err(|source| PackError::Json {
            name: name.clone(),
            source,
        })?;
        let neither = |missing| PackError::Neither {
            name: name.clone(),
            missing,
        };
        if value.get("builds").is_some() {
            facts(&value, &mut kernels).map_err(neither)?;
        } else {
            isf(&value, &mut kernels).map_err(neither)?;
        }
    }
    let json = serde_json::to_vec(&table(about, kernels)).map_err(|source| PackError::Json {
        name: "the table".to_owned(),
        source,
    })?;
    let options = lzma_rust2::XzOptions::with_preset(9);
    let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).map_err(PackError::Write)?;
    out.write_all(&json).map_err(PackError::Write)?;
    out.finish().map_err(PackError::Write)
}

/// A kernel on its way into the table.
#[derive(Default)]
struct Kernel {
    age: u32,
    types: BTreeMap<String, Variant>,
    globals: BTreeMap<String, u32>,
}

/// Keeps the types that views read, and those inside of them.
fn keep(all: &BTreeMap<&str, &Value>) -> BTreeMap<String, Variant> {
    let mut todo: Vec<&str> = TYPES.to_vec();
    let mut out = BTreeMap::new();
    while let Some(name) = todo.pop() {
        if out.contains_key(name) {
            continue;
        }
        let Some((name, v)) = all.get_key_value(name) else {
            continue;
        };
        let mut own = (*v).clone();
        count_elements(&mut own);
        let Ok(variant) = serde_json::from_value::<Variant>(own) else {
            continue;
        };
        if let Some(Value::Object(fields)) = v.get(1) {
            for field in fields.values() {
                inside(field, &mut todo);
            }
        }
        out.insert((*name).to_owned(), variant);
    }
    out
}

/// Bytes of an enumeration, as every compiler of these kernels has it.
const ENUM: i64 = 4;

/// Some sources give the length of an array whose elements they don't know the size of as bytes, below zero. It becomes a
/// number of elements where these are enumerations, else none.
fn count_elements(v: &mut Value) {
    match v {
        Value::Array(parts) => {
            let array = parts.iter().position(|p| p.as_str() == Some("[]"));
            if let Some(at) = array
                && let Some(bytes) = parts.get(at + 1).and_then(Value::as_i64)
                && bytes < 0
            {
                let element = parts.get(at + 2).and_then(|e| e.get(0)?.as_str());
                let count = if element == Some("enum") {
                    bytes.abs() / ENUM
                } else {
                    0
                };
                parts[at + 1] = count.into();
            }
            parts.iter_mut().for_each(count_elements);
        }
        Value::Object(fields) => fields.values_mut().for_each(count_elements),
        _ => {}
    }
}

/// Names of types that lie inside a field; what it points to does not.
fn inside<'v>(field: &'v Value, out: &mut Vec<&'v str>) {
    let Some(parts) = field.as_array() else {
        return;
    };
    let what = parts.iter().position(Value::is_string);
    let Some(at) = what else { return };
    match (parts[at].as_str(), parts.get(at + 1), parts.get(at + 2)) {
        (Some("struct" | "union"), Some(Value::String(name)), _) => out.push(name),
        (Some("struct" | "union"), Some(Value::Array(own)), _) => {
            if let Some(Value::Object(fields)) = own.get(1) {
                fields.values().for_each(|f| inside(f, out));
            }
        }
        (Some("[]"), _, Some(element)) => inside(element, out),
        _ => {}
    }
}

fn facts(v: &Value, out: &mut BTreeMap<String, Kernel>) -> Result<(), &'static str> {
    let types = v.get("types").and_then(Value::as_object).ok_or("types")?;
    let builds = v.get("builds").and_then(Value::as_array).ok_or("builds")?;
    for b in builds {
        // Of some builds types alone are known; they go by a name.
        let text = |key: &str| b.get(key).and_then(Value::as_str);
        let (guid, named) = match (text("guid"), text("name")) {
            (Some(guid), _) => (guid, false),
            (None, Some(name)) => (name, true),
            (None, None) => return Err("guid"),
        };
        if named && !guid.contains("x64") {
            continue;
        }
        let own = b
            .get("types")
            .and_then(Value::as_object)
            .ok_or("types of a build")?;
        let mut all = BTreeMap::new();
        for (name, number) in own {
            let n = number.as_u64().and_then(|n| usize::try_from(n).ok());
            let variant = n.and_then(|n| types.get(name)?.get(n));
            all.extend(variant.map(|v| (name.as_str(), v)));
        }
        let symbols = b.get("symbols").and_then(Value::as_object);
        let kernel = Kernel {
            age: if named { 0 } else { age(b.get("age")) },
            types: keep(&all),
            globals: globals(symbols, Value::as_u64),
        };
        out.entry(guid.to_ascii_uppercase()).or_insert(kernel);
    }
    Ok(())
}

fn age(v: Option<&Value>) -> u32 {
    let n = v.and_then(Value::as_u64);
    n.and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
}

/// Those of the symbols that are kept. `place` gives the offset in the image of one.
fn globals(
    all: Option<&Map<String, Value>>,
    place: impl Fn(&Value) -> Option<u64>,
) -> BTreeMap<String, u32> {
    let kept = all.into_iter().flatten();
    let kept = kept.filter(|(name, _)| GLOBALS.contains(&name.as_str()) || is_service(name));
    kept.filter_map(|(name, v)| Some((name.clone(), u32::try_from(place(v)?).ok()?)))
        .collect()
}

fn isf(v: &Value, out: &mut BTreeMap<String, Kernel>) -> Result<(), &'static str> {
    let pdb = v
        .pointer("/metadata/windows/pdb")
        .ok_or("metadata.windows.pdb")?;
    let guid = pdb.get("GUID").and_then(Value::as_str).ok_or("GUID")?;
    let user = v
        .get("user_types")
        .and_then(Value::as_object)
        .ok_or("user_types")?;
    let written: Vec<(&str, Value)> = user
        .iter()
        .filter(|(name, _)| !name.starts_with("__unnamed_") && !name.starts_with("unnamed_"))
        .map(|(name, t)| (name.as_str(), variant(t, user, 0)))
        .collect();
    let all = written.iter().map(|(n, v)| (*n, v)).collect();
    let symbols = v.get("symbols").and_then(Value::as_object);
    let kernel = Kernel {
        age: age(pdb.get("age")),
        types: keep(&all),
        globals: globals(symbols, |v| v.get("address")?.as_u64()),
    };
    out.entry(guid.to_ascii_uppercase()).or_insert(kernel);
    Ok(())
}

/// Types without names inside each other at most.
const MAX_DEPTH: usize = 8;

/// A type of an ISF as the table has it: types without a name are written out.
fn variant(t: &Value, user: &Map<String, Value>, depth: usize) -> Value {
    let mut fields = Map::new();
    for (name, f) in t
        .get("fields")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let mut parts = vec![f.get("offset").cloned().unwrap_or(Value::from(0))];
        parts.extend(kind(f.get("type").unwrap_or(&Value::Null), user, depth));
        fields.insert(name.clone(), Value::from(parts));
    }
    json!([t.get("size").cloned().unwrap_or(Value::from(0)), fields])
}

/// The kind that a type of an ISF is.
fn kind(t: &Value, user: &Map<String, Value>, depth: usize) -> Vec<Value> {
    let name = t.get("name").and_then(Value::as_str).unwrap_or_default();
    let below = |key: &str| Value::from(kind(t.get(key).unwrap_or(&Value::Null), user, depth));
    match t.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "base" => vec![Value::from(name)],
        "pointer" => vec![Value::from("*"), below("subtype")],
        "array" => vec![
            Value::from("[]"),
            t.get("count").cloned().unwrap_or(Value::from(0)),
            below("subtype"),
        ],
        "bitfield" => vec![
            Value::from("bits"),
            t.get("bit_position").cloned().unwrap_or(Value::from(0)),
            t.get("bit_length").cloned().unwrap_or(Value::from(1)),
            below("type"),
        ],
        k @ ("struct" | "union") => {
            let unnamed = name.starts_with("__unnamed_") || name.starts_with("unnamed_");
            let own = user.get(name).filter(|_| unnamed && depth < MAX_DEPTH);
            let ty = own.map_or_else(|| Value::from(name), |t| variant(t, user, depth + 1));
            vec![Value::from(k), ty]
        }
        "enum" => vec![Value::from("enum"), Value::from(name)],
        "function" => vec![Value::from("fn")],
        _ => vec![Value::from("void")],
    }
}

/// The kernels with each variant of a type once.
fn table(about: &str, kernels: BTreeMap<String, Kernel>) -> Table {
    let types: BTreeSet<&String> = kernels.values().flat_map(|k| k.types.keys()).collect();
    let globals: BTreeSet<&String> = kernels.values().flat_map(|k| k.globals.keys()).collect();
    let mut variants: BTreeMap<String, Vec<Variant>> = BTreeMap::new();
    let mut builds = Vec::new();
    for (guid, k) in &kernels {
        let number = |name: &&String| {
            let Some(own) = k.types.get(*name) else {
                return -1;
            };
            let all = variants.entry((*name).clone()).or_default();
            let at = all.iter().position(|v| v == own).unwrap_or_else(|| {
                all.push(own.clone());
                all.len() - 1
            });
            i16::try_from(at).unwrap_or(-1)
        };
        builds.push(Build {
            guid: guid.clone(),
            age: k.age,
            types: types.iter().map(number).collect(),
            globals: globals
                .iter()
                .map(|g| k.globals.get(*g).copied().unwrap_or(0))
                .collect(),
        });
    }
    Table {
        about: about.to_owned(),
        types: variants,
        globals: globals.into_iter().cloned().collect(),
        builds,
    }
}

//! `windows/vadinfo`, `windows/malfind`: what processes have reserved, and what of it looks injected.
//!
//! Sources: the public types `_MMVAD_SHORT`, `_MMVAD`, `_CONTROL_AREA`; the global MmProtectToValue, which gives the
//! protection constants of `winnt.h`.

use crate::disassembly::disassemble;
use crate::table::{Column, Kind, Table, column};
use crate::windows::objects::ObjectTypes;
use crate::windows::process::Process;
use crate::windows::views::handles::file;
use crate::windows::{Kernel, Object, WindowsError, WindowsView};
use ramsift_layers::Severity;
use std::collections::HashSet;

/// `windows/vadinfo`.
pub(in crate::windows) const VADINFO: WindowsView = WindowsView {
    name: "windows/vadinfo",
    meaning: "memory that processes have reserved",
    columns: AREAS,
    build: areas,
    recover: None,
};

const AREAS: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("start", Kind::Hex, "first byte"),
    column("end", Kind::Hex, "last byte"),
    column(
        "tag",
        Kind::Text,
        "tag of the descriptor's memory: VadS is private",
    ),
    column("protection", Kind::Text, "protection when it was reserved"),
    column("private", Kind::Flag, "whether it is the process's own"),
    column("commit", Kind::Number, "pages that are charged"),
    column("file", Kind::Text, "file that is mapped"),
    column("vad", Kind::Hex, "virtual address of its descriptor"),
    column("physical", Kind::Hex, "physical address of its descriptor"),
];

/// `windows/malfind`.
pub(in crate::windows) const MALFIND: WindowsView = WindowsView {
    name: "windows/malfind",
    meaning: "private memory that is writable and executable",
    columns: INJECTED,
    build: injected,
    recover: None,
};

const INJECTED: &[Column] = &[
    column("pid", Kind::Number, "process id"),
    column("comm", Kind::Text, "name of the program"),
    column("start", Kind::Hex, "first byte"),
    column("end", Kind::Hex, "last byte"),
    column("protection", Kind::Text, "protection when it was reserved"),
    column("reason", Kind::Text, "what it looks like"),
    column("hex", Kind::Text, "its first bytes"),
    column(
        "disasm",
        Kind::Text,
        "the same as x86 instructions, up to the first that is none; null of an image",
    ),
    column("physical", Kind::Hex, "physical address of its first byte"),
];

/// Descriptors of a process at most.
const MOST: usize = 1 << 20;

/// Reserved memory.
pub(in crate::windows) struct Area {
    pub(in crate::windows) start: u64,
    pub(in crate::windows) end: u64,
    tag: String,
    pub(in crate::windows) protection: u32,
    pub(in crate::windows) private: bool,
    commit: Option<u64>,
    pub(in crate::windows) file: Option<String>,
    vad: u64,
    pub(in crate::windows) image: bool,
    /// Address of the control area, and of the first prototype entry; 0 of private memory.
    pub(in crate::windows) control: u64,
    pub(in crate::windows) prototypes: u64,
}

/// The row that MmProtectToValue repeats for each kind of caching: the same in all builds.
const ROW: [u32; 8] = [1, 2, 0x10, 0x20, 4, 8, 0x40, 0x80];

/// Protections by the number in a descriptor.
fn protections(k: &Kernel<'_>) -> Result<Vec<u32>, WindowsError> {
    let Ok(at) = k.address("MmProtectToValue") else {
        return Ok(ROW.repeat(4));
    };
    let mut raw = [0; 128];
    k.space.read(at, &mut raw)?;
    let all = raw.as_chunks::<4>().0.iter();
    Ok(all.map(|v| u32::from_le_bytes(*v)).collect())
}

/// A protection in words.
pub(super) fn words(p: u32) -> &'static str {
    match p & 0xff {
        0x01 => "no access",
        0x02 => "read",
        0x04 => "read, write",
        0x08 => "copy on write",
        0x10 => "execute",
        0x20 => "read, execute",
        0x40 => "read, write, execute",
        0x80 => "copy on write, execute",
        _ => "not known",
    }
}

/// The areas of a process, by address.
pub(in crate::windows) fn of(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    p: &Process<'_>,
    doubts: &mut Vec<String>,
) -> Result<Vec<Area>, WindowsError> {
    let protections = protections(k)?;
    let layouts = k.symbols.types();
    let balanced = layouts.has_field("_MMVAD_SHORT", "VadNode.Left");
    let (left, right) = if balanced {
        ("VadNode.Left", "VadNode.Right")
    } else {
        ("LeftChild", "RightChild")
    };
    let root = if p.object.has("VadRoot.Root") {
        p.object.number("VadRoot.Root")?
    } else {
        p.object.number("VadRoot.BalancedRoot.RightChild")?
    };
    let (mut out, mut seen, mut todo) = (Vec::new(), HashSet::new(), vec![root]);
    let mut unread = 0usize;
    while let Some(va) = todo.pop() {
        if va == 0 || !seen.insert(va) || out.len() >= MOST {
            continue;
        }
        let node = k.object("_MMVAD_SHORT", va);
        match (
            area(k, types, &node, &protections),
            node.number(left),
            node.number(right),
        ) {
            (Ok(a), Ok(l), Ok(r)) => {
                out.push(a);
                todo.extend([l, r]);
            }
            _ => unread += 1,
        }
    }
    if unread > 0 && !p.has_ended() {
        doubts.push(format!(
            "{unread} descriptors of the memory of {} can't be read",
            p.label()
        ));
    }
    out.sort_by_key(|a| a.start);
    Ok(out)
}

fn area(
    k: &Kernel<'_>,
    types: &ObjectTypes,
    node: &Object<'_>,
    protections: &[u32],
) -> Result<Area, WindowsError> {
    let page = |low: &str, high: &str| {
        let own = node.number(low)?;
        let more = if node.has(high) {
            node.number(high)?
        } else {
            0
        };
        Ok::<_, WindowsError>(own | more << 32)
    };
    let (first, last) = (
        page("StartingVpn", "StartingVpnHigh")?,
        page("EndingVpn", "EndingVpnHigh")?,
    );
    let number = node.number("u.VadFlags.Protection")?;
    let protection = usize::try_from(number)
        .ok()
        .and_then(|n| protections.get(n));
    let mut tag = [0; 4];
    k.space.read(node.va.wrapping_sub(12), &mut tag)?;
    let private = node.first_of(&["u.VadFlags.PrivateMemory", "u1.VadFlags1.PrivateMemory"])?;
    let commit = node.first_of(&["u1.VadFlags1.CommitCharge", "u.VadFlags.CommitCharge"]);
    // Short descriptors end before what tells of files.
    let long = !matches!(&tag, b"VadS" | b"VadF");
    let (mut mapped, mut image) = (None, false);
    let (mut area, mut prototypes) = (0, 0);
    if long {
        let own = k.object("_MMVAD", node.va);
        if let Ok(Some(sub)) = own.follow("Subsection", "_SUBSECTION")
            && let Ok(Some(control)) = sub.follow("ControlArea", "_CONTROL_AREA")
        {
            area = control.va;
            prototypes = own.number("FirstPrototypePte").unwrap_or(0);
            image = control.number("u.Flags.Image").is_ok_and(|i| i != 0);
            let at = control.number("FilePointer").map_or(0, |f| f & !0xf);
            mapped = (at != 0).then(|| file(k, types, at)).flatten();
        }
    }
    Ok(Area {
        start: first << 12,
        end: last << 12 | 0xfff,
        tag: tag.iter().map(|b| char::from(*b)).collect(),
        protection: protection.copied().unwrap_or(0),
        private: private != 0,
        commit: commit.ok(),
        file: mapped,
        vad: node.va,
        image,
        control: area,
        prototypes,
    })
}

fn areas(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(AREAS);
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let all = match of(k, &types, &p, &mut out.doubts) {
            Ok(all) => all,
            Err(e) => {
                let who = p.label();
                out.doubts
                    .push(format!("the memory of {who} can't be listed: {e}"));
                continue;
            }
        };
        for a in all {
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                a.start.into(),
                a.end.into(),
                a.tag.into(),
                words(a.protection).into(),
                a.private.into(),
                a.commit.into(),
                a.file.into(),
                a.vad.into(),
                k.physical(a.vad).map(|p| p.0).into(),
            ]);
        }
    }
    Ok(out)
}

/// First bytes that are shown.
const SHOWN: usize = 64;
/// Pages of an area that are looked at for its first bytes.
const LOOK: u64 = 16;

fn injected(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(INJECTED);
    let types = ObjectTypes::new(k)?;
    for p in k.processes(&mut out.doubts)? {
        let Ok(space) = p.space(k) else { continue };
        let Ok(all) = of(k, &types, &p, &mut out.doubts) else {
            continue;
        };
        let suspect = |a: &Area| a.private && matches!(a.protection & 0xff, 0x40 | 0x80);
        for a in all.into_iter().filter(suspect) {
            let mut pages = (0..LOOK)
                .map(|i| a.start + i * 4096)
                .take_while(|va| *va < a.end);
            let mut raw = [0; SHOWN];
            // What was never written holds no code.
            let first =
                pages.find(|va| space.read(*va, &mut raw).is_ok() && raw.iter().any(|b| *b != 0));
            let Some(at) = first else { continue };
            let pe = raw.starts_with(b"MZ");
            let reason = if pe { "an image (MZ)" } else { "code" };
            // A 32-bit program has 64-bit code too, which lies above its own.
            let bits = if p.is_wow64() && at < 1 << 31 { 32 } else { 64 };
            let code = (!pe)
                .then(|| disassemble(&raw, at, bits))
                .filter(|c| !c.is_empty());
            out.push(vec![
                p.pid.into(),
                p.name().into(),
                a.start.into(),
                a.end.into(),
                words(a.protection).into(),
                reason.into(),
                raw.iter()
                    .map(|b| format!("{b:02x}"))
                    .collect::<String>()
                    .into(),
                code.into(),
                space.translate(at).ok().map(|p| p.0).into(),
            ]);
            let who = p.label();
            let text = format!(
                "{who} has private memory at {:#x} that is writable and executable and holds {reason}",
                a.start
            );
            let (rule, severity) = if pe {
                ("injected_image", Severity::Critical)
            } else {
                ("private_executable_memory", Severity::Medium)
            };
            out.flag(rule, severity, text);
        }
    }
    Ok(out)
}

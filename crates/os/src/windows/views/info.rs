//! `windows/info`: what the kernel says of itself and of the machine.
//!
//! Sources: the public types `_KUSER_SHARED_DATA`, `_DBGKD_GET_VERSION64`; the globals NtBuildLab, NtBuildNumber,
//! KeNumberProcessors.

use crate::table::{Column, Kind, Table, Value, column};
use crate::windows::{Kernel, WindowsError, WindowsView, time};
use ramsift_layers::page_file::MOST;
use ramsift_symbols::Source;

/// `windows/info`.
pub(in crate::windows) const INFO: WindowsView = WindowsView {
    name: "windows/info",
    meaning: "the kernel, its build, and the machine's clock",
    columns: COLUMNS,
    build,
    recover: None,
};

const COLUMNS: &[Column] = &[
    column("major", Kind::Number, "major version, as programs see it"),
    column("minor", Kind::Number, "minor version"),
    column("build", Kind::Number, "number of the build"),
    column("build_lab", Kind::Text, "build, branch and day"),
    column("service_pack", Kind::Number, "number of the service pack"),
    column(
        "product",
        Kind::Text,
        "workstation, domain controller or server",
    ),
    column("processors", Kind::Number, "processors in use"),
    column("system_root", Kind::Text, "the folder of the system"),
    column(
        "captured",
        Kind::Time,
        "the machine's clock when it was captured",
    ),
    column("boot", Kind::Time, "when it was started"),
    column("kernel_base", Kind::Hex, "where the kernel's image begins"),
    column("kernel_size", Kind::Number, "bytes of it"),
    column(
        "dtb",
        Kind::Hex,
        "physical address of the kernel's top page table",
    ),
    column("symbols", Kind::Text, "where names and types come from"),
];

/// The same in every address space.
const SHARED_DATA: u64 = 0xffff_f780_0000_0000;

fn build(k: &Kernel<'_>) -> Result<Table, WindowsError> {
    let mut out = Table::new(COLUMNS);
    if let Source::Nearest { .. } = &k.symbols.provenance().types {
        out.doubts.push(k.symbols.provenance().types.to_string());
    }
    let files = k.space.page_files();
    let doubts = (0..usize::from(MOST)).filter_map(|n| files.attached(n)?.doubt(n));
    out.doubts.extend(doubts);
    let shared = k.object("_KUSER_SHARED_DATA", SHARED_DATA);
    let small = |name| {
        let at = k.symbols.address(name)?;
        k.space.u32(at.0).ok()
    };
    let text = |name| {
        let at = k.symbols.address(name)?;
        let mut raw = [0; 128];
        k.space.read(at.0, &mut raw).ok()?;
        let end = raw.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&raw[..end]).into_owned())
    };
    // Times are KSYSTEM_TIME: low part, high part, high part again.
    let moment = |path: &str| shared.number(path).ok();
    let now = moment("SystemTime");
    // Interrupt time counts from the start of the machine.
    let up = moment("InterruptTime").filter(|t| *t > 0);
    let product = match shared.number("NtProductType") {
        Ok(1) => Some("workstation"),
        Ok(2) => Some("domain controller"),
        Ok(3) => Some("server"),
        _ => None,
    };
    let root = shared
        .at("NtSystemRoot")
        .and_then(|at| Ok(k.space.utf16(at, 520)?));
    // The number of the pack stands in the byte above the lowest.
    let pack = small("CmNtCSDVersion").map(|v| u64::from(v >> 8 & 0xff));
    out.push(vec![
        shared.number("NtMajorVersion")?.into(),
        shared.number("NtMinorVersion")?.into(),
        k.build_number().into(),
        text("NtBuildLab").into(),
        pack.into(),
        product.into(),
        small("KeNumberProcessors")
            .map(|n| u64::from(n & 0xff))
            .into(),
        root.ok().into(),
        now.and_then(time).into(),
        now.zip(up)
            .and_then(|(n, u)| time(n.checked_sub(u)?))
            .into(),
        k.base.into(),
        k.size.into(),
        k.space.dtb().0.into(),
        Value::from(k.symbols.provenance().types.to_string()),
    ]);
    if let Some(at) = now.and_then(time) {
        out.event(at, "captured", "the machine's clock at the capture");
    }
    Ok(out)
}

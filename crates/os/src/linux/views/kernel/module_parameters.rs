//! `linux/module_parameters`: parameters of modules with their values, as `/sys/module/<name>/parameters`
//! shows them.
//!
//! ```text
//! module { kp -> kernel_param[num_kp] { name, ops -> kernel_param_ops { get }, perm, arg } }
//! get is param_array_ops' -> arg is a kparam_array { max, elemsize, num, ops, elem }
//! ```
//!
//! What `get` is says how the value is written; the value of a function that is a module's own is not
//! known.
//!
//! Sources: Linux `include/linux/moduleparam.h`, `kernel/params.c`.

use crate::linux::{CodeMap, Kernel, LinuxError, LinuxView, Object, Owner};
use crate::table::{Column, Kind, Table, column};

/// `linux/module_parameters`.
pub(in crate::linux) const MODULE_PARAMETERS: LinuxView = LinuxView {
    name: "linux/module_parameters",
    meaning: "parameters of modules with their values, hidden modules' too",
    columns: COLUMNS,
    build,
    recover: None,
    on_request: false,
};

/// Columns of `linux/module_parameters`.
const COLUMNS: &[Column] = &[
    column("module", Kind::Text, "the module"),
    column("name", Kind::Text, "name of the parameter"),
    column(
        "type",
        Kind::Text,
        "`int`, `bool`, `charp`, …, `int[]` of several; the name of a function of the module's own; null: it can only be \
         written",
    ),
    column(
        "value",
        Kind::Text,
        "its value as /sys/module shows it; null where the kernel has no function of its own for it",
    ),
    column(
        "mode",
        Kind::Number,
        "permission bits of its file in /sys/module; 0: it has none",
    ),
    column(
        "hidden",
        Kind::Flag,
        "whether the module is missing from the list of modules",
    ),
    column(
        "va",
        Kind::Hex,
        "virtual address of its struct kernel_param",
    ),
    column("physical", Kind::Hex, "physical address of that"),
];

/// Parameters of a module, and elements of one of them, at most.
const MAX: u64 = 4096;
/// Bytes of a text, and of all elements together, at most: a page, as of files in /sys.
const MAX_TEXT: usize = 4096;
/// Rows at most.
const MAX_ROWS: usize = 1 << 20;

fn build(kernel: &Kernel<'_>) -> Result<Table, LinuxError> {
    let mut out = Table::new(COLUMNS);
    let code = CodeMap::new(kernel, &mut out.doubts)?;
    let size = kernel.symbols.types().size_of("kernel_param")?;
    let listed = kernel.modules(&mut out.doubts)?;
    let hidden = code.hidden().iter().map(|h| (h.va, true));
    for (va, hidden) in listed.iter().map(|m| (m.va, false)).chain(hidden) {
        let m = kernel.object("module", va);
        let head = || -> Result<_, LinuxError> {
            Ok((
                m.text("name")?,
                m.number("kp")?,
                m.number("num_kp")? & 0xffff_ffff,
            ))
        };
        let (module, first, count) = match head() {
            Ok(h) => h,
            Err(e) => {
                out.doubts.push(format!("struct module at {va:#x}: {e}"));
                continue;
            }
        };
        if count > MAX {
            out.doubts.push(format!(
                "struct module at {va:#x} claims {count} parameters"
            ));
        }
        for i in 0..count.min(MAX) {
            if out.rows.len() >= MAX_ROWS {
                out.doubts
                    .push(format!("modules have more than {MAX_ROWS} parameters"));
                return Ok(out);
            }
            let p = kernel.object("kernel_param", first.wrapping_add(i * size));
            if let Err(e) = row(&code, &p, &module, hidden, &mut out) {
                out.doubts.push(format!("kernel_param at {:#x}: {e}", p.va));
            }
        }
    }
    Ok(out)
}

fn row(
    code: &CodeMap<'_>,
    p: &Object<'_>,
    module: &str,
    hidden: bool,
    out: &mut Table,
) -> Result<(), LinuxError> {
    let name = p.kernel().text(p.number("name")?, MAX_TEXT)?;
    let mode = p.number("perm")? & 0xffff;
    let (kind, value) = match value(code, p) {
        Ok(found) => found,
        Err(e) => {
            out.doubts
                .push(format!("value of parameter {name} of module {module}: {e}"));
            (None, None)
        }
    };
    out.push(vec![
        module.into(),
        name.into(),
        kind.into(),
        value.into(),
        mode.into(),
        hidden.into(),
        p.va.into(),
        p.physical().into(),
    ]);
    Ok(())
}

/// The type of a parameter and its value, as far as they can be told.
fn value(
    code: &CodeMap<'_>,
    p: &Object<'_>,
) -> Result<(Option<String>, Option<String>), LinuxError> {
    let kernel = p.kernel();
    let arg = p.number("arg")?;
    let Some(kind) = getter(code, p)? else {
        return Ok((None, None));
    };
    if kind != ARRAY {
        let value = scalar(kernel, &kind, arg)?;
        return Ok((Some(kind), value));
    }
    let array = kernel.object("kparam_array", arg);
    let size = array.number("elemsize")? & 0xffff_ffff;
    let elements = array.number("elem")?;
    // Where nobody counts, all count.
    let count = match array.number("num")? {
        0 => array.number("max")?,
        at => {
            let mut raw = [0; 4];
            kernel.space.read(at, &mut raw)?;
            u64::from(u32::from_le_bytes(raw))
        }
    } & 0xffff_ffff;
    let Some(kind) = getter(code, &array)? else {
        return Ok((Some("[]".to_owned()), None));
    };
    let mut all = String::new();
    for i in 0..count.min(MAX) {
        let Some(one) = scalar(kernel, &kind, elements.wrapping_add(i * size))? else {
            return Ok((Some(kind + "[]"), None));
        };
        if i > 0 {
            all.push(',');
        }
        all.push_str(&one);
        if all.len() >= MAX_TEXT {
            break;
        }
    }
    Ok((Some(kind + "[]"), Some(all)))
}

/// What [`getter`] says of arrays.
const ARRAY: &str = "array";

/// Which function shows a parameter: the kernel's without `param_get_`, others by their name. `None`: it
/// can't be shown.
fn getter(code: &CodeMap<'_>, of: &Object<'_>) -> Result<Option<String>, LinuxError> {
    let Some(ops) = of.follow("ops", "kernel_param_ops")? else {
        return Ok(None);
    };
    let get = ops.number("get")?;
    if get == 0 {
        return Ok(None);
    }
    let owner = code.owner(get);
    Ok(Some(match &owner {
        Owner::Kernel { symbol, offset: 0 } if symbol == "param_array_get" => ARRAY.to_owned(),
        Owner::Kernel { symbol, offset: 0 } => match symbol.strip_prefix("param_get_") {
            Some(kind) if kind != ARRAY => kind.to_owned(),
            _ => symbol.clone(),
        },
        _ => owner.to_string(),
    }))
}

/// A value as the kernel's function of this name shows it, without the line's end.
fn scalar(kernel: &Kernel<'_>, kind: &str, at: u64) -> Result<Option<String>, LinuxError> {
    let mut raw = [0; 8];
    let mut read = |bytes: usize| -> Result<u64, LinuxError> {
        kernel.space.read(at, &mut raw[..bytes])?;
        Ok(u64::from_le_bytes(raw))
    };
    let yes = |is: bool| if is { "Y" } else { "N" }.to_owned();
    Ok(Some(match kind {
        "bool" => yes(read(1)? != 0),
        "invbool" => yes(read(1)? == 0),
        "byte" => read(1)?.to_string(),
        "short" => (read(2)? as u16).cast_signed().to_string(),
        "ushort" => read(2)?.to_string(),
        "int" => (read(4)? as u32).cast_signed().to_string(),
        "uint" => read(4)?.to_string(),
        // printf writes 0 without `0x`.
        "hexint" => match read(4)? {
            0 => "00000000".to_owned(),
            n => format!("{n:#08x}"),
        },
        "long" => read(8)?.cast_signed().to_string(),
        "ulong" | "ullong" => read(8)?.to_string(),
        // printf's name for a null pointer.
        "charp" => match read(8)? {
            0 => "(null)".to_owned(),
            text => kernel.text(text, MAX_TEXT)?,
        },
        "string" => kernel.text(
            kernel.object("kparam_string", at).number("string")?,
            MAX_TEXT,
        )?,
        _ => return Ok(None),
    }))
}

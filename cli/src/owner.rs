//! `ramsift owner`: whose a byte of physical memory is.

use crate::args::OwnerArgs;
use crate::config::Config;
use crate::evidence::{self, Named, NamedJob};
use crate::symbols;
use crate::terminal::{Shown, say, tell};
use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt64Type;
use ramsift_layers::PhysAddr;
use ramsift_os::Machine;
use ramsift_os::frames::Frame;
use ramsift_store::Keys;
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::name;
use ramsift_structured_worker::{AloneError, with_machine};

/// An address as people write it: hexadecimal with 0x, else decimal.
fn address(s: &str) -> Result<u64> {
    let parsed = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => s.parse(),
    };
    parsed.with_context(|| format!("{s:?} is no address; write it as 0x1a2b or in decimal"))
}

/// Says who owns physical addresses.
pub(crate) async fn run(config: &Config, args: OwnerArgs) -> Result<u8> {
    let wanted: Vec<u64> = args
        .address
        .iter()
        .map(|a| address(a))
        .collect::<Result<_>>()?;
    let named = evidence::named(config, &args.image).await?;
    if let Named::Job(j) = &named
        && args.place.evidence.is_none()
        && sealed(j, &wanted).await?
    {
        return Ok(0);
    }
    let e = match named {
        Named::Capture(path) => {
            evidence::open(config, &path, args.place.evidence.as_deref()).await?
        }
        Named::Job(j) => j.open(config, args.place.evidence.as_deref()).await?,
    };
    for pa in &wanted {
        if e.plan.layout.runs.from_phys(PhysAddr(*pa)).is_none() {
            bail!("physical address {pa:#x} is not in the image");
        }
    }
    let record = e.record(config).await;
    let asked = wanted.clone();
    let ask = move |machine: &dyn Machine, runs: &ramsift_layers::run::RunMap| {
        let mut found: Vec<Option<Frame>> = vec![None; asked.len()];
        let mut doubts = Vec::new();
        machine
            .frames(runs, &mut doubts, &mut |f| {
                for (pa, slot) in asked.iter().zip(&mut found) {
                    if f.start.0 <= *pa && *pa < f.start.0 + f.len {
                        *slot = Some(f.clone());
                    }
                }
            })
            .map_err(|e| AloneError::NoKernel(e.to_string()))?;
        Ok((found, doubts))
    };
    let means = symbols::means(config).await?;
    let got = with_machine(&e.image, &e.plan, record.as_ref(), means, ask).await?;
    e.keep(config, got.found.as_ref()).await;
    let (found, doubts) = got.answer;
    for (pa, f) in wanted.iter().zip(found) {
        say!("{}", line(*pa, f.as_ref()));
    }
    for d in &doubts {
        tell!("doubtful: {}", Shown(d));
    }
    Ok(if doubts.is_empty() { 0 } else { 3 })
}

/// Answers from the frame map of a sealed job, where it has one.
async fn sealed(j: &NamedJob, wanted: &[u64]) -> Result<bool> {
    let key = Keys::new(&j.job).table(name::FRAMES);
    if j.objects.head(&key).await.is_err() {
        return Ok(false);
    }
    let t = Tables::new(j.objects.clone(), &QueryLimits::default())?;
    t.register(name::FRAMES, &[key], None).await?;
    for pa in wanted {
        let sql = format!(
            "SELECT physical_address, length, state, owner, virtual_address, file_offset FROM frames \
             WHERE physical_address <= {pa} ORDER BY physical_address DESC LIMIT 1"
        );
        let mut found = None;
        for b in t.collect(&sql).await?.iter().filter(|b| b.num_rows() > 0) {
            let number = |i: usize| {
                let c = b.column(i).as_primitive::<UInt64Type>();
                c.is_valid(0).then(|| c.value(0))
            };
            let (start, len) = (number(0).unwrap_or(0), number(1).unwrap_or(0));
            let owner = b.column(3).as_string::<i32>();
            if pa - start < len {
                let state = b.column(2).as_string::<i32>().value(0).to_owned();
                found = Some((
                    state,
                    Frame {
                        start: PhysAddr(start),
                        len,
                        state: "",
                        owner: owner.is_valid(0).then(|| owner.value(0).into()),
                        va: number(4),
                        file_offset: number(5),
                    },
                ));
            }
        }
        match found {
            Some((state, f)) => say!("{}", words(*pa, &state, &f)),
            None => bail!("physical address {pa:#x} is not in the image"),
        }
    }
    Ok(true)
}

fn line(pa: u64, f: Option<&Frame>) -> String {
    let Some(f) = f else {
        return format!("{pa:#x}  unknown");
    };
    words(pa, f.state, f)
}

fn words(pa: u64, state: &str, f: &Frame) -> String {
    let inside = pa - f.start.0;
    let mut out = format!("{pa:#x}  {state}");
    if let Some(o) = &f.owner {
        out.push_str(&format!("  {}", Shown(o)));
    }
    if let Some(va) = f.va {
        out.push_str(&format!("  virtual {:#x}", va.wrapping_add(inside)));
    }
    if let Some(at) = f.file_offset {
        out.push_str(&format!("  file offset {:#x}", at.wrapping_add(inside)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_lines() {
        assert_eq!(address("0x10").expect("hex"), 16);
        assert_eq!(address("10").expect("decimal"), 10);
        assert!(address("ten").expect_err("no").to_string().contains("ten"));
        let f = Frame {
            start: PhysAddr(0x1000),
            len: 0x2000,
            state: "process",
            owner: Some("sshd[8] [heap]".into()),
            va: Some(0x5000),
            file_offset: None,
        };
        assert_eq!(
            line(0x1234, Some(&f)),
            "0x1234  process  sshd[8] [heap]  virtual 0x5234"
        );
    }
}

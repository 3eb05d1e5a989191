//! Reports that are short, wrong or not one's own: none of them is sealed as complete.

mod support;

use proptest::prelude::*;
use ramsift_aggregator::{FinaliseError, finalise};
use ramsift_proto::v1::{Outcome, SegmentRef};
use ramsift_store::commits::read;
use ramsift_store::tables::{CoverageRow, name};
use ramsift_store::{Keys, Manifest, Objects};
use support::{
    CHUNK, IMAGE, JOB, Told, aggregator, differing, folder, honest, info, record_again, store,
};

/// What is done to the reports of a job.
#[derive(Clone, Debug)]
enum Forgery {
    DropRow(usize, usize),
    DropRows(usize),
    MoveStart(usize, usize, i64),
    MoveEnd(usize, usize, i64),
    Repeat(usize, usize),
    TellOf(usize, usize),
    Swap(usize, usize),
    Hash(usize, &'static str),
    Outcome(usize),
    /// Rows that a segment is said to have, or one of its parts.
    Rows(usize, i64),
    PartRows(usize, usize, i64),
    /// A segment that is not what it was.
    Cut(usize, usize),
    Garbage(usize),
    Gone(usize),
    /// No report on a task.
    Silent(usize),
    /// An engine's name that covers nothing.
    Engine(usize),
}

fn forgery() -> impl Strategy<Value = Forgery> {
    use Forgery::*;
    let chunk = || 0usize..4;
    let row = || 0usize..2;
    let by = || prop_oneof![-70_000i64..0, 1i64..70_000, Just(i64::MAX / 2)];
    let table = || 0usize..2;
    prop_oneof![
        (chunk(), row()).prop_map(|(c, r)| DropRow(c, r)),
        chunk().prop_map(DropRows),
        (chunk(), row(), by()).prop_map(|(c, r, n)| MoveStart(c, r, n)),
        (chunk(), row(), by()).prop_map(|(c, r, n)| MoveEnd(c, r, n)),
        (chunk(), row()).prop_map(|(c, r)| Repeat(c, r)),
        (chunk(), 1usize..4).prop_map(|(c, n)| TellOf(c, (c + n) % 4)),
        (chunk(), 1usize..4).prop_map(|(c, n)| Swap(c, (c + n) % 4)),
        (chunk(), prop_oneof![Just(""), Just("zz"), Just("abcd")]).prop_map(|(c, h)| Hash(c, h)),
        chunk().prop_map(Outcome),
        (table(), prop_oneof![-3i64..0, 1i64..9]).prop_map(|(t, n)| Rows(t, n)),
        (table(), chunk(), prop_oneof![-1i64..0, 1i64..9]).prop_map(|(t, c, n)| PartRows(t, c, n)),
        (table(), 1usize..200).prop_map(|(t, n)| Cut(t, n)),
        table().prop_map(Garbage),
        table().prop_map(Gone),
        chunk().prop_map(Silent),
        chunk().prop_map(Engine),
    ]
}

fn moved(at: u64, by: i64) -> u64 {
    at.saturating_add_signed(by)
}

/// Forges what is told; `false` when that is done to what is stored.
fn forge(told: &mut Vec<Told>, f: &Forgery) {
    match *f {
        Forgery::DropRow(c, r) => drop(told[c].coverage.remove(r)),
        Forgery::DropRows(c) => told[c].coverage.clear(),
        Forgery::MoveStart(c, r, n) => {
            let row = &mut told[c].coverage[r];
            row.start = moved(row.start, n);
        }
        Forgery::MoveEnd(c, r, n) => {
            let row = &mut told[c].coverage[r];
            row.end = moved(row.end, n);
        }
        Forgery::Repeat(c, r) => {
            let row = told[c].coverage[r].clone();
            told[c].coverage.push(row);
        }
        Forgery::TellOf(c, other) => told[c].coverage = told[other].coverage.clone(),
        Forgery::Swap(a, b) => {
            let of_b = std::mem::take(&mut told[b].coverage);
            told[b].coverage = std::mem::replace(&mut told[a].coverage, of_b);
        }
        Forgery::Hash(c, h) => told[c].report.hash = h.into(),
        Forgery::Outcome(c) => told[c].report.outcome = Outcome::Failed.into(),
        Forgery::Engine(c) => {
            for row in &mut told[c].coverage {
                row.engine = "carver".into();
            }
        }
        Forgery::Silent(c) => drop(told.remove(c)),
        _ => {}
    }
}

async fn spoil(objects: &dyn Objects, f: &Forgery) {
    let key = Keys::new(JOB).commit("1");
    let size = objects.head(&key).await.expect("a commit").size;
    let mut record = read(objects, &key, size).await.expect("a record");
    let segment = |t: usize| record.segments[t].clone();
    let again = async |s: &SegmentRef, data: Vec<u8>| {
        objects.put(&s.key, data.into()).await.expect("stored");
    };
    match *f {
        Forgery::Rows(t, n) => record.segments[t].rows = moved(record.segments[t].rows, n),
        Forgery::PartRows(t, c, n) => {
            let p = &mut record.segments[t].parts[c];
            p.rows = moved(p.rows, n);
        }
        Forgery::Cut(t, n) => {
            let s = segment(t);
            let (data, _) = objects.get(&s.key).await.expect("a segment");
            again(&s, data[..data.len() - n].to_vec()).await;
        }
        Forgery::Garbage(t) => {
            let s = segment(t);
            again(&s, vec![7; s.bytes as usize]).await;
        }
        Forgery::Gone(t) => objects.delete(&segment(t).key).await.expect("deleted"),
        _ => {}
    }
    record_again(objects, &record).await;
}

async fn sealed(told: &[Told], f: Option<&Forgery>) -> Result<Manifest, FinaliseError> {
    let (_dir, objects) = folder();
    store(objects.as_ref(), told).await;
    if let Some(f) = f {
        spoil(objects.as_ref(), f).await;
    }
    let m = finalise(&aggregator(&objects), JOB, &info(None)).await?;
    assert_eq!(differing(objects.as_ref(), &m).await, Vec::<String>::new());
    Ok(m)
}

fn run<T>(f: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(f)
}

#[test]
fn honest_reports_are_complete_whoever_else_speaks() {
    let m = run(sealed(&honest(), None)).expect("sealed");
    assert_eq!(
        (m.verdict.as_str(), m.gaps.len()),
        ("complete", 0),
        "{:?}",
        m.gaps
    );
    assert_eq!(m.coverage["carvers"].total(), IMAGE);
    assert_eq!(
        m.evidence_blake3.as_deref(),
        Some(blake3::hash(&support::evidence()).to_hex().as_str())
    );
    // Tasks that the job does not have: parts of a chunk that was not cut, chunks past its end, views.
    let mut told = honest();
    for task in ["chunk-0.0", "chunk-9", "view-other", "memory-0"] {
        let mut more = told[0].clone();
        more.report.task = task.into();
        more.report.attempt = format!("attempt at {task}");
        told.push(more);
    }
    let m = run(sealed(&told, None)).expect("sealed");
    assert_eq!(m.verdict, "complete", "{:?}", m.gaps);
    let rows = |m: &Manifest, t: &str| {
        let key = Keys::new(JOB).table(t);
        m.files.iter().find(|f| f.key == key).and_then(|f| f.rows)
    };
    assert_eq!(rows(&m, name::FINDINGS), Some(8), "of its own tasks alone");
}

#[test]
fn gaps_say_which_report() {
    let mut told = honest();
    told[1].coverage.remove(1);
    let m = run(sealed(&told, None)).expect("sealed");
    let said = |m: &Manifest, what: &str| m.gaps.iter().any(|g| g.contains(what));
    assert!(
        said(&m, "chunk-1: carvers tell of 4096 of its 65536 bytes"),
        "{:?}",
        m.gaps
    );
    assert!(
        said(&m, "no report accounts for these bytes"),
        "{:?}",
        m.gaps
    );
    assert_eq!(m.coverage["carvers"].failed, CHUNK - 4096);
    let mut told = honest();
    let stray = CoverageRow {
        start: 0,
        end: 10,
        ..told[2].coverage[0].clone()
    };
    told[2].coverage.push(stray);
    let m = run(sealed(&told, None)).expect("sealed");
    assert!(
        said(&m, "chunk-2: carvers tell of bytes that are not its own"),
        "{:?}",
        m.gaps
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_forged_report_is_sealed_as_complete(f in forgery()) {
        let mut told = honest();
        let before = format!("{told:?}");
        forge(&mut told, &f);
        // Moved to where it was.
        let moves = matches!(f, Forgery::MoveStart(..) | Forgery::MoveEnd(..));
        prop_assume!(!moves || format!("{told:?}") != before);
        match run(sealed(&told, Some(&f))) {
            Ok(m) => {
                prop_assert_eq!(&m.verdict, "complete with gaps");
                prop_assert!(!m.gaps.is_empty());
                // Whatever was told: each byte is in the sums once.
                prop_assert_eq!(m.coverage["carvers"].total(), IMAGE);
            }
            Err(FinaliseError::Early(n)) => {
                prop_assert!(matches!(f, Forgery::Silent(_)) && n == 1);
            }
            Err(e) => {
                let stored = matches!(f, Forgery::Cut(..) | Forgery::Garbage(_) | Forgery::Gone(_));
                prop_assert!(stored && e.is_fatal(), "{}", e);
            }
        }
    }
}

//! `ramsift view`: one OS-aware view of a capture, without a job, or as a job has it.

use crate::args::{EvidenceArgs, Format, Rows, ShortArgs, ViewArgs};
use crate::config::Config;
use crate::evidence::{self, Named, NamedJob};
use crate::terminal::{self, Shown, say, tell};
use crate::{rows, suggest, symbols};
use anyhow::{Context, Result, bail};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use ramsift_aggregator::so_far;
use ramsift_os::table::{Kind, Table};
use ramsift_os::view::{Purpose, views};
use ramsift_os::{SYSTEMS, View};
use ramsift_store::query::{QueryLimits, Tables};
use ramsift_store::tables::{finished_schema, name};
use ramsift_store::{Keys, Objects};
use ramsift_structured_worker::{batch, table_name, view_alone};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// Exit code where something is doubtful.
pub(crate) const DOUBTFUL: u8 = 3;

/// Columns of views that are addresses or flags.
static ADDRESSES: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let columns = views().flat_map(|v| v.columns);
    columns
        .filter(|c| c.kind == Kind::Hex)
        .map(|c| c.name)
        .collect()
});

/// Whether views have a column of this name that is an address or a set of flags.
pub(crate) fn is_address(column: &str) -> bool {
    ADDRESSES.contains(column)
}

/// The view of a name, however it is written (linux/pslist, linux.pslist, linux_pslist, pslist); where it names no system,
/// that of each system that has one.
pub(crate) fn named(wanted: &str) -> Result<Vec<&'static View>> {
    let plain = |s: &str| s.to_ascii_lowercase().replace(['.', '_', '-'], "/");
    let w = plain(wanted);
    let is_meant = |v: &&View| {
        let n = plain(v.name);
        n == w || n.split_once('/').is_some_and(|(_, short)| short == w)
    };
    let found: Vec<&View> = views().filter(is_meant).collect();
    if found.is_empty() {
        let names: Vec<&str> = views().map(|v| v.name).collect();
        return Err(suggest::unknown("view", wanted, &names));
    }
    Ok(found)
}

/// Whether a view is the one of its system that does something.
fn is_for(view: &View, purpose: Purpose) -> bool {
    let mut all = SYSTEMS.iter().filter_map(|s| s.view_for(purpose));
    all.any(|v| v.name == view.name)
}

/// The view that does something: of the system that is asked for first.
pub(crate) fn view_for(purpose: Purpose) -> Result<&'static View> {
    let found = SYSTEMS.iter().find_map(|s| s.view_for(purpose));
    found.context("this build has no such view")
}

/// Lists the views, or shows the rows of one. What is doubtful goes to standard error; the exit code is 3 then.
pub(crate) async fn run(config: &Config, args: ViewArgs) -> Result<u8> {
    if args.list {
        list();
        return Ok(0);
    }
    let (Some(wanted), Some(image)) = (&args.name, &args.image) else {
        bail!("name a view and a capture or a job, or use --list");
    };
    show(
        config,
        named(wanted)?,
        image,
        &args.place,
        &Wish::of(&args),
        &args.how,
    )
    .await
}

/// Which rows of a view are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) pid: Vec<u32>,
    pub(crate) condition: Option<String>,
    pub(crate) sort: Option<String>,
    pub(crate) limit: usize,
}

impl Wish {
    fn of(a: &ViewArgs) -> Self {
        Self {
            pid: a.pid.clone(),
            condition: a.condition.clone(),
            sort: a.sort.clone(),
            limit: a.limit,
        }
    }

    /// What the SELECT says behind its table.
    fn clauses(&self, view: &View) -> Result<(String, String)> {
        let names: Vec<&str> = view.columns.iter().map(|c| c.name).collect();
        let known = |c: &str| match names.iter().find(|n| n.eq_ignore_ascii_case(c)) {
            Some(n) => Ok(*n),
            None => Err(suggest::unknown("column", c, &names)),
        };
        let mut all = Vec::new();
        if !self.pid.is_empty() {
            known("pid")?;
            let pids: Vec<String> = self.pid.iter().map(u32::to_string).collect();
            all.push(format!("pid IN ({})", pids.join(", ")));
        }
        if let Some(c) = &self.condition {
            all.push(format!("({c})"));
        }
        let filter = if all.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", all.join(" AND "))
        };
        let mut order = String::from(" ORDER BY row");
        if let Some(s) = &self.sort {
            let (column, direction) = match s.strip_prefix('-') {
                Some(c) => (c, "DESC NULLS LAST"),
                None => (s.as_str(), "ASC NULLS LAST"),
            };
            order = format!(" ORDER BY \"{}\" {direction}, row", known(column)?);
        }
        Ok((filter, order))
    }
}

/// Shows a view of a capture, or the table of a job, where there is one.
pub(crate) async fn show(
    config: &Config,
    views: Vec<&'static View>,
    image: &str,
    place: &EvidenceArgs,
    wish: &Wish,
    how: &Format,
) -> Result<u8> {
    // A name that is wrong for all of them is told before anything is read.
    let wrong = views.iter().map(|v| wish.clauses(v)).find_map(Result::err);
    if let Some(e) = wrong.filter(|_| views.iter().all(|v| wish.clauses(v).is_err())) {
        return Err(e);
    }
    let answer = rows_of(config, views, image, place).await?;
    let (filter, order) = wish.clauses(answer.view)?;
    print(answer, (&filter, &order), wish, how).await
}

/// Prints the rows of an answer, and what is doubtful.
async fn print(answer: Answer, clauses: (&str, &str), wish: &Wish, how: &Format) -> Result<u8> {
    let (filter, order) = clauses;
    let limit = if wish.limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {}", wish.limit)
    };
    let select = format!(
        "SELECT * EXCLUDE ({}) FROM {}{filter}{order}{limit}",
        answer.exclude, answer.from
    );
    let n = rows::print(answer.tables.stream(&select).await?, how, true).await?;
    if wish.limit > 0 && n == wish.limit as u64 && how.format == Rows::Table {
        let all = count(
            &answer.tables,
            &format!("SELECT count(*) FROM {}{filter}", answer.from),
        )
        .await?;
        rows::cut(n, all, "rows");
    }
    for d in &answer.doubts {
        tell!("doubtful: {}", Shown(d));
    }
    Ok(if answer.doubts.is_empty() {
        0
    } else {
        DOUBTFUL
    })
}

/// The one number of a statement.
pub(crate) async fn count(t: &Tables, sql: &str) -> Result<u64> {
    let got = t.collect(sql).await?;
    let n = got.first().filter(|b| b.num_rows() > 0).map(|b| {
        let c = arrow::compute::cast(b.column(0), &arrow::datatypes::DataType::UInt64);
        c.map(|c| c.as_primitive::<UInt64Type>().value(0))
    });
    Ok(n.transpose()?.unwrap_or(0))
}

/// The rows of a view as a table `v`.
pub(crate) struct Answer {
    /// The view.
    pub(crate) view: &'static View,
    pub(crate) tables: Tables,
    /// What the rows are taken from: `v`, or a statement over it.
    from: &'static str,
    /// Columns of it that are no columns of the view.
    pub(crate) exclude: &'static str,
    pub(crate) doubts: Vec<String>,
}

/// The rows of a view: those of a job's table, or built from the capture.
pub(crate) async fn rows_of(
    config: &Config,
    views: Vec<&'static View>,
    image: &str,
    place: &EvidenceArgs,
) -> Result<Answer> {
    let named = evidence::named(config, image).await?;
    if let Named::Job(j) = &named
        && place.evidence.is_none()
    {
        for view in &views {
            if let Some(a) = sealed(j, view).await? {
                return Ok(a);
            }
        }
    }
    let moved = place.evidence.as_deref();
    let e = match named {
        Named::Capture(path) => evidence::open(config, &path, moved).await?,
        Named::Job(j) => j.open(config, moved).await?,
    };
    let record = e.record(config).await;
    let means = symbols::means(config).await?;
    let got = view_alone(&e.image, &e.plan, record.as_ref(), views, means).await?;
    e.keep(config, got.found.as_ref()).await;
    let (view, table) = got.answer;
    let tables = memory_table(batch(&table)?)?;
    Ok(Answer {
        view,
        tables,
        from: "v",
        exclude: "row",
        doubts: table.doubts,
    })
}

/// A session with one batch as the table `v`.
fn memory_table(b: RecordBatch) -> Result<Tables> {
    let nothing: Arc<dyn Objects> = Arc::new(ramsift_store::LocalObjects::open_existing(
        &std::env::temp_dir(),
    )?);
    let t = Tables::new(nothing, &QueryLimits::default())?;
    t.register_batch("v", b)?;
    Ok(t)
}

/// The rows of a view that a job has committed, though it is not sealed.
async fn so_far_of(j: &NamedJob, view: &'static View) -> Result<Option<Answer>> {
    let now = so_far(j.objects.as_ref(), &j.job).await?;
    let Some(mut now) = now else { return Ok(None) };
    let Some(rows) = now.tables.remove(&table_name(view.name)) else {
        return Ok(None);
    };
    let tables = Tables::new(j.objects.clone(), &QueryLimits::default())?;
    tables
        .register_unfinished("v", &rows.segments, rows.rows)
        .await?;
    // Reported with the view's own rows.
    let Some(of_views) = now.tables.remove(name::VIEWS) else {
        return Ok(None);
    };
    tables
        .register_unfinished("views", &of_views.segments, of_views.rows)
        .await?;
    tell!(
        "so far: {:.0} % of the chunks of {}; this view is whole, what chunks find is not",
        100.0 * now.share,
        Shown(&j.job)
    );
    let doubts = doubts_of(&tables, view).await?;
    Ok(Some(Answer {
        view,
        tables,
        from: "v",
        exclude: "capture, pass, row",
        doubts,
    }))
}

/// What a job says is doubtful in a view.
async fn doubts_of(tables: &Tables, view: &View) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT detail FROM views WHERE view = '{}' AND doubtful > 0",
        view.name
    );
    let mut doubts = Vec::new();
    for b in tables.collect(&sql).await? {
        let text = b.column(0).as_string::<i32>();
        doubts.extend(
            text.iter()
                .map(|d| d.unwrap_or("the job says no more").to_owned()),
        );
    }
    Ok(doubts)
}

/// The table of a job that is sealed.
async fn sealed(j: &NamedJob, view: &'static View) -> Result<Option<Answer>> {
    let keys = Keys::new(&j.job);
    if j.objects.head(&keys.manifest()).await.is_err() {
        return so_far_of(j, view).await;
    }
    let views = keys.table(name::VIEWS);
    if j.objects.head(&views).await.is_err() {
        return Ok(None);
    }
    let tables = Tables::new(j.objects.clone(), &QueryLimits::default())?;
    tables.register("views", &[views], None).await?;
    let key = keys.table(&table_name(view.name));
    if j.objects.head(&key).await.is_ok() {
        tables.register("v", &[key], None).await?;
    } else {
        // A view without rows has no table; one that was not built is built from the capture.
        let sql = format!(
            "SELECT 1 FROM views WHERE view = '{}' AND status = 'built'",
            view.name
        );
        let built = tables.collect(&sql).await?;
        if built.iter().all(|b| b.num_rows() == 0) {
            return Ok(None);
        }
        let own = batch(&Table::new(view.columns))?;
        let stamped = finished_schema(&table_name(view.name), &own.schema());
        tables.register_batch("v", RecordBatch::new_empty(stamped))?;
    }
    let doubts = doubts_of(&tables, view).await?;
    Ok(Some(Answer {
        view,
        tables,
        from: "v",
        exclude: "capture, pass, row",
        doubts,
    }))
}

fn list() {
    for v in views() {
        let columns: Vec<_> = v.columns.iter().map(|c| c.name).collect();
        say!(
            "{:<24} {}\n{:<24} {}",
            v.name,
            v.meaning,
            "",
            columns.join(", ")
        );
        if terminal::closed() {
            return;
        }
    }
}

/// `ramsift history`, `ramsift logins`: views under the names that people look for.
pub(crate) async fn short(config: &Config, view: &str, args: ShortArgs) -> Result<u8> {
    let wish = Wish {
        sort: Some("time".to_owned()),
        limit: args.limit,
        ..Wish::default()
    };
    let views = named(view)?;
    if let [view] = views[..]
        && is_for(view, Purpose::Logins)
        && args.place.evidence.is_none()
        && let Named::Job(j) = evidence::named(config, &args.image).await?
        && let Some(mut answer) = sealed(&j, view).await?
    {
        let events = Keys::new(&j.job).table(name::EVENTS);
        answer.tables.register("events", &[events], None).await?;
        (answer.from, answer.exclude) = (LOGINS_AND_LOG, "row");
        let (filter, order) = wish.clauses(view)?;
        return print(answer, (&filter, &order), &wish, &args.how).await;
    }
    show(config, views, &args.image, &args.place, &wish, &args.how).await
}

/// The records of utmp(5) in cached files, what sshd wrote to its log, and records that lie elsewhere in memory: a job has
/// all of them.
const LOGINS_AND_LOG: &str = "(SELECT row, time, kind, \"user\", uid, line, host, address, pid, source, physical, \
     NULL AS message FROM v \
     UNION ALL SELECT NULL, coalesce(time, inferred_time), \
     CASE WHEN message LIKE 'Accepted %' THEN 'login' ELSE 'failed' END, \
     regexp_replace(message, '^.* for (?:invalid user )?(.*) from .*$', '\\1'), NULL, NULL, NULL, \
     regexp_replace(message, '^.* from ([^ ]+) port .*$', '\\1'), pid, 'log of sshd', physical_address, message \
     FROM events WHERE source = 'sshd' AND (message LIKE 'Accepted % for %' OR message LIKE 'Failed % for %') \
     UNION ALL SELECT NULL, time, \
     CASE WHEN json_text(fields, 'line') = 'ssh:notty' OR json_text(fields, 'type') = 'LOGIN_PROCESS' THEN 'failed' \
          WHEN json_text(fields, 'type') = 'USER_PROCESS' THEN 'login' \
          WHEN json_text(fields, 'type') = 'DEAD_PROCESS' THEN 'logout' \
          WHEN json_text(fields, 'type') = 'BOOT_TIME' THEN 'boot' ELSE json_text(fields, 'type') END, \
     json_text(fields, 'user'), NULL, json_text(fields, 'line'), json_text(fields, 'host'), json_text(fields, 'addr'), pid, \
     'record in memory', physical_address, NULL FROM events WHERE source = 'utmp' \
     AND physical_address NOT IN (SELECT physical FROM v WHERE physical IS NOT NULL))";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_found_however_they_are_written() {
        for n in [
            "linux/pslist",
            "pslist",
            "linux.pslist",
            "linux_pslist",
            "PsList",
        ] {
            assert_eq!(named(n).expect("view")[0].name, "linux/pslist");
        }
        assert_eq!(
            named("linux.keyboard-notifiers").expect("view")[0].name,
            "linux/keyboard_notifiers"
        );
        let e = named("pslits").expect_err("none").to_string();
        assert!(e.contains("linux/pslist"), "{e}");
    }

    #[test]
    fn wrong_columns_are_told() {
        let view = named("pslist").expect("view")[0];
        let wish = Wish {
            sort: Some("-pidd".into()),
            ..Wish::default()
        };
        assert!(
            wish.clauses(view)
                .expect_err("none")
                .to_string()
                .contains("pid")
        );
    }
}

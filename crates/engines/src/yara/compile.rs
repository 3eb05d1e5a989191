//! Compiles and classifies sources.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use yara_x::{Compiler, Rules, SourceCode};
use yara_x_parser::ast::{self, AST, Item, WithSpan};

use super::{
    bounds::longest_match,
    cond::Cond,
    externals::Externals,
    info::{ConditionKind, MetaValue, RuleClass, RuleError, RuleInfo, RulesError},
    load::{Content, RuleSource, Sources, line_column},
    lower::{Lowered, lower},
    severity,
};

/// What is kept of a memory-safe rule besides its [`RuleInfo`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Body {
    /// `None`: file-oriented.
    pub(super) cond: Option<Cond>,
    /// Each pattern as written after its name: `= "abc" wide`.
    pub(super) patterns: Vec<String>,
    /// Longest possible match of its patterns; `None` when one has no bound.
    pub(super) longest: Option<u64>,
    /// The rule as written; empty for one that came compiled.
    pub(super) text: String,
}

/// A set, compiled and sorted.
pub(super) struct Compiled {
    pub(super) infos: Vec<RuleInfo>,
    pub(super) bodies: Vec<Body>,
    pub(super) errors: Vec<RuleError>,
    /// What was taken although it is not as yara-x wants it.
    pub(super) warnings: Vec<RuleError>,
    /// Everything that came as source, with conditions and modules.
    pub(super) full: Rules,
    /// Modules that the sources import.
    pub(super) imports: Vec<String>,
    /// Sets that came compiled, with the id of their first rule.
    pub(super) foreign: Vec<(u32, Vec<u8>)>,
}

/// What the syntax tree tells of a rule.
struct Parsed {
    lowered: Lowered,
    patterns: Vec<String>,
    names: Vec<String>,
    lengths: Vec<Option<u64>>,
    file: String,
    line: u32,
    text: String,
    /// It has an error, so the compiled rule of this name, if any, is another one.
    broken: bool,
}

/// The sources, compiled in one way.
struct Attempt {
    compiler: Compiler<'static>,
    parsed: HashMap<(String, String), Parsed>,
    errors: Vec<RuleError>,
}

fn attempt(
    sources: &[RuleSource],
    externals: &Externals,
    relaxed: bool,
) -> Result<Attempt, RulesError> {
    let mut compiler = externals.compiler(relaxed)?;
    compiler.enable_includes(false);
    let mut namespace = None;
    let (mut parsed, mut errors) = (HashMap::new(), Vec::new());
    for source in sources {
        let Content::Text(text) = &source.content else {
            continue;
        };
        if namespace != Some(&source.namespace) {
            compiler.new_namespace(&source.namespace);
            namespace = Some(&source.namespace);
        }
        let before = compiler.errors().len();
        // What is wrong is taken from `errors`; the rules around it are compiled all the same.
        compiler
            .add_source(SourceCode::from(text.as_str()).with_origin(&source.file))
            .ok();
        let ast = AST::from(text.as_str());
        let mut broken = BTreeSet::new();
        for error in compiler.errors().get(before..).unwrap_or_default() {
            errors.push(located(error, source, text, &ast, &mut broken));
        }
        parse(source, text, &ast, &broken, externals, &mut parsed);
    }
    Ok(Attempt {
        compiler,
        parsed,
        errors,
    })
}

pub(super) fn compile(sources: Sources, externals: &Externals) -> Result<Compiled, RulesError> {
    let Sources {
        sources,
        mut errors,
    } = sources;
    let mut strict = attempt(&sources, externals, false)?;
    let mut warnings = Vec::new();
    if !strict.errors.is_empty() {
        // YARA 4 was less strict about regular expressions: what it took is taken, and told.
        let relaxed = attempt(&sources, externals, true)?;
        let place = |e: &RuleError| (e.file.clone(), e.line, e.column);
        let left: BTreeSet<_> = relaxed.errors.iter().map(place).collect();
        let of_strict = std::mem::take(&mut strict.errors);
        warnings.extend(of_strict.into_iter().filter(|e| !left.contains(&place(e))));
        strict = relaxed;
    }
    let Attempt {
        compiler,
        mut parsed,
        errors: own,
    } = strict;
    errors.extend(own);
    let full = compiler.build();
    let imports = full.imports().map(str::to_owned).collect();
    let (mut infos, mut bodies) = (Vec::new(), Vec::new());
    for rule in full.iter() {
        let key = (rule.namespace().to_owned(), rule.identifier().to_owned());
        let mut info = describe(infos.len(), &rule);
        bodies.push(place(&mut info, parsed.remove(&key)));
        infos.push(info);
    }
    resolve(&mut infos, &mut bodies);
    let mut foreign = Vec::new();
    for source in sources {
        let Content::Compiled(bytes) = source.content else {
            continue;
        };
        match Rules::deserialize(&bytes) {
            Ok(rules) => {
                foreign.push((infos.len() as u32, bytes));
                for rule in rules.iter() {
                    let mut info = describe(infos.len(), &rule);
                    info.file.clone_from(&source.file);
                    let why = "came compiled, without the source that would tell what it needs";
                    info.reasons.push(why.to_owned());
                    infos.push(info);
                    bodies.push(Body::default());
                }
            }
            Err(e) => errors.push(RuleError {
                file: source.file,
                line: 0,
                column: 0,
                rule: None,
                reason: format!("can't load this compiled set ({e}): give its sources instead"),
            }),
        }
    }
    Ok(Compiled {
        infos,
        bodies,
        errors,
        warnings,
        full,
        imports,
        foreign,
    })
}

/// An error of yara-x with its place, and which rule it is about.
fn located(
    error: &yara_x::errors::CompileError,
    source: &RuleSource,
    text: &str,
    ast: &AST<'_>,
    broken: &mut BTreeSet<usize>,
) -> RuleError {
    let mut reason = error.title().to_owned();
    let label = error.labels().next();
    if let Some(text) = label.as_ref().map(|l| l.text()).filter(|t| !t.is_empty()) {
        reason = format!("{reason}: {text}");
    }
    let Some(at) = label.map(|l| l.span().start()) else {
        let file = source.file.clone();
        return RuleError {
            file,
            line: 0,
            column: 0,
            rule: None,
            reason,
        };
    };
    let (line, column) = line_column(text, at);
    let within =
        |r: &&ast::Rule<'_>| r.identifier.span().start() <= at && at <= r.condition.span().end();
    let rule = match ast.rules().find(within) {
        Some(rule) => {
            broken.insert(rule.identifier.span().start());
            Some(rule.identifier.name.to_owned())
        }
        // A rule with a syntax error isn't in the tree.
        None => name_before(text, at),
    };
    RuleError {
        file: source.file.clone(),
        line,
        column,
        rule,
        reason,
    }
}

/// The name after the last `rule` before a place in a text that doesn't parse.
fn name_before(text: &str, at: usize) -> Option<String> {
    let mut words = text.get(..at)?.split_whitespace().rev();
    let mut name = words.next()?;
    for word in words {
        if word == "rule" {
            let end = name
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            return name.get(..end).filter(|n| !n.is_empty()).map(str::to_owned);
        }
        name = word;
    }
    None
}

/// Lowers every rule of a file that compiled.
fn parse(
    source: &RuleSource,
    text: &str,
    ast: &AST<'_>,
    broken: &BTreeSet<usize>,
    externals: &Externals,
    parsed: &mut HashMap<(String, String), Parsed>,
) {
    for item in ast.items() {
        let Item::Rule(rule) = item else { continue };
        let at = rule.identifier.span().start();
        let key = (source.namespace.clone(), rule.identifier.name.to_owned());
        // Of several rules with one name, the first that compiled is the one.
        if parsed.get(&key).is_some_and(|p: &Parsed| !p.broken) {
            continue;
        }
        let is_rule =
            |name: &str| parsed.contains_key(&(source.namespace.clone(), name.to_owned()));
        let lowered = lower(rule, &is_rule, externals);
        let patterns: Vec<&ast::Pattern<'_>> = rule.patterns.iter().flatten().collect();
        let body = |p: &&ast::Pattern<'_>| {
            let tail = p.identifier().span().end()..p.span().end();
            text.get(tail).unwrap_or_default().to_owned()
        };
        let found = Parsed {
            lowered,
            patterns: patterns.iter().map(body).collect(),
            names: patterns
                .iter()
                .map(|p| p.identifier().name.to_owned())
                .collect(),
            lengths: patterns.iter().map(|p| longest_match(p)).collect(),
            file: source.file.clone(),
            line: line_column(text, at).0,
            text: rule_text(rule, text),
            broken: broken.contains(&at),
        };
        parsed.insert(key, found);
    }
}

/// The text of a rule that compiled. The tree doesn't have its start and end.
fn rule_text(rule: &ast::Rule<'_>, text: &str) -> String {
    let from = rule.identifier.span().start();
    let mut end = rule.condition.span().end();
    // Between the condition and the closing brace there may be parentheses and comments.
    while let Some(rest) = text.get(end..).filter(|r| !r.is_empty()) {
        let comment = match rest.get(..2) {
            Some("//") => rest.find('\n'),
            Some("/*") => rest.find("*/").map(|n| n + 2),
            _ => None,
        };
        end += comment.unwrap_or_else(|| rest.chars().next().map_or(1, char::len_utf8));
        if comment.is_none() && rest.starts_with('}') {
            break;
        }
    }
    let private = if rule.flags.contains(ast::RuleFlags::Private) {
        "private "
    } else {
        ""
    };
    let global = if rule.flags.contains(ast::RuleFlags::Global) {
        "global "
    } else {
        ""
    };
    format!(
        "{private}{global}rule {}",
        text.get(from..end).unwrap_or_default()
    )
}

/// What the compiled rule tells of itself. File-oriented until proven otherwise.
fn describe(id: usize, rule: &yara_x::Rule<'_, '_>) -> RuleInfo {
    let value = |v| match v {
        yara_x::MetaValue::Integer(v) => MetaValue::Integer(v),
        yara_x::MetaValue::Float(v) => MetaValue::Float(v),
        yara_x::MetaValue::Bool(v) => MetaValue::Bool(v),
        yara_x::MetaValue::String(v) => MetaValue::Text(v.to_owned()),
        yara_x::MetaValue::Bytes(v) => MetaValue::Text(v.to_string()),
    };
    let meta: Vec<_> = rule
        .metadata()
        .map(|(k, v)| (k.to_owned(), value(v)))
        .collect();
    let tags: Vec<_> = rule.tags().map(|t| t.identifier().to_owned()).collect();
    let (severity, severity_reason) = severity::from_meta(&meta, &tags);
    RuleInfo {
        id: id as u32,
        namespace: rule.namespace().to_owned(),
        identifier: rule.identifier().to_owned(),
        tags,
        meta,
        file: rule.namespace().to_owned(),
        line: 0,
        private: rule.is_private(),
        global: rule.is_global(),
        class: RuleClass::FileOriented,
        reasons: Vec::new(),
        severity,
        severity_reason,
        patterns: rule
            .patterns()
            .include_private(true)
            .map(|p| p.identifier().to_owned())
            .collect(),
        references: Vec::new(),
        asks_of_files: false,
    }
}

/// Fills in what the syntax tree tells; references wait for [`resolve`].
fn place(info: &mut RuleInfo, parsed: Option<Parsed>) -> Body {
    let Some(parsed) = parsed else {
        info.reasons
            .push("its source can't be found again".to_owned());
        return Body::default();
    };
    info.file = parsed.file;
    info.line = parsed.line;
    let Lowered {
        cond,
        file_reasons,
        positional,
        references,
        asks_of_files,
    } = parsed.lowered;
    info.asks_of_files = asks_of_files;
    let mut body = Body {
        cond,
        patterns: parsed.patterns,
        longest: Some(0),
        text: parsed.text,
    };
    // Until ids are known, references travel as reasons would; `resolve` takes them off again.
    info.references = (0..references.len() as u32).collect();
    if body.cond.is_some() {
        let condition = match positional.is_empty() {
            true => ConditionKind::Presence,
            false => ConditionKind::Positional,
        };
        info.class = RuleClass::MemorySafe { condition };
        info.reasons.extend(positional);
        for (name, len) in parsed.names.iter().zip(&parsed.lengths) {
            body.longest = body.longest.zip(*len).map(|(a, b)| a.max(b));
            if len.is_none() {
                info.reasons
                    .push(format!("bounded by the overlap: {name} is unbounded"));
            }
        }
    } else {
        info.reasons.extend(file_reasons);
    }
    info.reasons
        .extend(references.into_iter().map(|r| format!("\0{r}")));
    body
}

/// Turns names of rules into ids, and hands file-orientation on: to rules that refer to a
/// file-oriented one, and from a file-oriented global rule to its whole namespace.
fn resolve(infos: &mut [RuleInfo], bodies: &mut [Body]) {
    let mut ids = HashMap::new();
    for info in infos.iter() {
        ids.insert((info.namespace.clone(), info.identifier.clone()), info.id);
    }
    let mut spoilt = BTreeMap::<String, String>::new();
    for i in 0..infos.len() {
        let info = &mut infos[i];
        let (names, reasons): (Vec<_>, Vec<_>) = std::mem::take(&mut info.reasons)
            .into_iter()
            .partition(|r| r.starts_with('\0'));
        info.reasons = reasons;
        let id = |n: &String| {
            ids.get(&(info.namespace.clone(), n[1..].to_owned()))
                .copied()
        };
        info.references = names.iter().map(|n| id(n).unwrap_or(u32::MAX)).collect();
        for reference in info.references.clone() {
            let target = infos.get(reference as usize);
            if target.is_none_or(|t| !t.class.is_memory_safe()) {
                let name = target.map_or("?", |t| t.identifier.as_str()).to_owned();
                infos[i].class = RuleClass::FileOriented;
                infos[i]
                    .reasons
                    .push(format!("refers to {name}, which is file-oriented"));
            }
        }
        let info = &infos[i];
        if info.global && !info.class.is_memory_safe() {
            spoilt
                .entry(info.namespace.clone())
                .or_insert_with(|| info.identifier.clone());
        }
    }
    for (info, body) in infos.iter_mut().zip(bodies) {
        if let Some(global) = spoilt.get(&info.namespace)
            && info.class.is_memory_safe()
        {
            info.class = RuleClass::FileOriented;
            info.reasons
                .push(format!("the global rule {global} is file-oriented"));
        }
        if !info.class.is_memory_safe() {
            body.cond = None;
        }
    }
}

//! From a rule's syntax tree to its class and, when it is memory-safe, its [`Cond`].
//!
//! Lowering and classifying are one walk: what can't be lowered is a reason to call the rule
//! file-oriented, so the two can't disagree.

use std::collections::BTreeSet;

use yara_x_parser::ast::{
    self, Expr, FuncCall, IdentWithIndex, Iterable, MatchAnchor, OfItems, PatternSet,
};

use super::cond::{Anchor, Arith, Compare, Cond, Function, PatternRef, Quantifier, Text};
use super::externals::Externals;

/// Conditions nested deeper than this are refused: the walk and the evaluation recurse.
const MAX_DEPTH: u32 = 200;

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Lowered {
    /// The condition, unless there is a reason against it.
    pub(super) cond: Option<Cond>,
    /// Why the rule is file-oriented; empty for a memory-safe one.
    pub(super) file_reasons: Vec<String>,
    /// Why its condition is positional; empty when presence decides it.
    pub(super) positional: Vec<String>,
    /// Rules it names, in the order of `Cond::Rule`.
    pub(super) references: Vec<String>,
    /// It uses a variable whose value is another one for each file.
    pub(super) asks_of_files: bool,
}

/// Lowers the condition of `rule`. `is_rule` tells rule names from those of modules; external variables have the values
/// that they have in memory.
pub(super) fn lower(
    rule: &ast::Rule<'_>,
    is_rule: &dyn Fn(&str) -> bool,
    externals: &Externals,
) -> Lowered {
    let patterns = rule
        .patterns
        .iter()
        .flatten()
        .map(|p| p.identifier().name.to_owned())
        .collect();
    let mut walk = Walk {
        is_rule,
        externals,
        asks_of_files: false,
        patterns,
        vars: Vec::new(),
        depth: 0,
        file: BTreeSet::new(),
        positional: BTreeSet::new(),
        references: Vec::new(),
    };
    let cond = walk.expr(&rule.condition);
    Lowered {
        cond: cond.filter(|_| walk.file.is_empty()),
        file_reasons: walk.file.into_iter().collect(),
        positional: walk.positional.into_iter().collect(),
        references: walk.references,
        asks_of_files: walk.asks_of_files,
    }
}

struct Walk<'a> {
    is_rule: &'a dyn Fn(&str) -> bool,
    externals: &'a Externals,
    asks_of_files: bool,
    patterns: Vec<String>,
    /// Variables in scope, outermost first, and whether they follow from a match's offset.
    vars: Vec<(String, bool)>,
    depth: u32,
    file: BTreeSet<String>,
    positional: BTreeSet<String>,
    references: Vec<String>,
}

/// `None` after a reason was noted: the walk goes on, to collect all reasons.
type Low = Option<Cond>;

impl Walk<'_> {
    fn expr(&mut self, e: &Expr<'_>) -> Low {
        self.depth += 1;
        let low = if self.depth > MAX_DEPTH {
            self.refuse(format!("its condition is nested deeper than {MAX_DEPTH}"))
        } else {
            self.expr_inner(e)
        };
        self.depth -= 1;
        low
    }

    fn expr_inner(&mut self, e: &Expr<'_>) -> Low {
        match e {
            Expr::True { .. } => Some(Cond::Bool(true)),
            Expr::False { .. } => Some(Cond::Bool(false)),
            Expr::Filesize { .. } => self.refuse("uses filesize"),
            Expr::Entrypoint { .. } => self.refuse("uses entrypoint"),
            Expr::LiteralString(s) => Some(Cond::Str(s.value.to_vec())),
            Expr::LiteralInteger(i) if i.is_unsigned => {
                self.refuse("uses a number above 2^63, for which file offsets are no help")
            }
            Expr::LiteralInteger(i) => Some(Cond::Int(i.value)),
            Expr::LiteralFloat(f) => Some(Cond::Float(f.value)),
            Expr::Regexp(_) | Expr::Matches(_) => {
                self.refuse("matches a regular expression on a value")
            }
            Expr::Ident(i) => self.ident(i.name),
            Expr::PatternMatch(p) => {
                let pattern = self.pattern(p.identifier.name)?;
                let anchor = self.anchor(p.anchor.as_ref(), p.identifier.name)?;
                Some(Cond::Match(pattern, anchor))
            }
            Expr::PatternCount(p) => self.count(p),
            Expr::PatternOffset(p) => {
                self.note(format!("asks where {} lies", shown(p.identifier.name)));
                let (pattern, index) = self.indexed(p)?;
                Some(Cond::Offset(pattern, index))
            }
            Expr::PatternLength(p) => {
                self.note(format!("asks how long {} is", shown(p.identifier.name)));
                let (pattern, index) = self.indexed(p)?;
                Some(Cond::Length(pattern, index))
            }
            Expr::Lookup(l) => {
                let low = self.expr(&l.primary);
                self.expr(&l.index);
                low.and_then(|_| self.refuse("looks up a value of a module"))
            }
            Expr::FieldAccess(n) => self.field_access(n),
            Expr::FuncCall(f) => self.call(f, None),
            Expr::Of(of) => self.of(of),
            Expr::ForOf(f) => {
                let quantifier = self.quantifier(&f.quantifier);
                let set = self.pattern_set(&f.pattern_set);
                let body = self.expr(&f.body);
                Some(Cond::ForOf(quantifier?, set, Box::new(body?)))
            }
            Expr::ForIn(f) => self.for_in(f),
            Expr::With(w) => {
                let outer = self.vars.len();
                let mut values = Vec::new();
                for d in &w.declarations {
                    let value = self.expr(&d.expression);
                    let tainted = value.as_ref().is_some_and(|v| self.follows_match(v));
                    self.vars.push((d.identifier.name.to_owned(), tainted));
                    values.push(value);
                }
                let body = self.expr(&w.body);
                self.vars.truncate(outer);
                Some(Cond::With(
                    values.into_iter().collect::<Option<_>>()?,
                    Box::new(body?),
                ))
            }
            _ => self.operator(e),
        }
    }

    fn operator(&mut self, e: &Expr<'_>) -> Low {
        use {Arith as A, Compare as C, Text as T};
        match e {
            Expr::Defined(u) => Some(Cond::Defined(Box::new(self.expr(&u.operand)?))),
            Expr::Not(u) => Some(Cond::Not(Box::new(self.expr(&u.operand)?))),
            Expr::Minus(u) => Some(Cond::Minus(Box::new(self.expr(&u.operand)?))),
            Expr::BitwiseNot(u) => Some(Cond::BitNot(Box::new(self.expr(&u.operand)?))),
            Expr::And(n) => Some(Cond::And(self.all(n.operands())?)),
            Expr::Or(n) => Some(Cond::Or(self.all(n.operands())?)),
            Expr::Add(n) => Some(Cond::Arith(A::Add, self.all(n.operands())?)),
            Expr::Sub(n) => Some(Cond::Arith(A::Sub, self.all(n.operands())?)),
            Expr::Mul(n) => Some(Cond::Arith(A::Mul, self.all(n.operands())?)),
            Expr::Div(n) => Some(Cond::Arith(A::Div, self.all(n.operands())?)),
            Expr::Mod(n) => Some(Cond::Arith(A::Mod, self.all(n.operands())?)),
            Expr::Shl(b) => Some(Cond::Arith(A::Shl, self.two(b)?.into())),
            Expr::Shr(b) => Some(Cond::Arith(A::Shr, self.two(b)?.into())),
            Expr::BitwiseAnd(b) => Some(Cond::Arith(A::And, self.two(b)?.into())),
            Expr::BitwiseOr(b) => Some(Cond::Arith(A::Or, self.two(b)?.into())),
            Expr::BitwiseXor(b) => Some(Cond::Arith(A::Xor, self.two(b)?.into())),
            Expr::Eq(b) => self.compare(C::Eq, b),
            Expr::Ne(b) => self.compare(C::Ne, b),
            Expr::Lt(b) => self.compare(C::Lt, b),
            Expr::Gt(b) => self.compare(C::Gt, b),
            Expr::Le(b) => self.compare(C::Le, b),
            Expr::Ge(b) => self.compare(C::Ge, b),
            Expr::Contains(b) => self.text(T::Contains, b),
            Expr::IContains(b) => self.text(T::IContains, b),
            Expr::StartsWith(b) => self.text(T::StartsWith, b),
            Expr::IStartsWith(b) => self.text(T::IStartsWith, b),
            Expr::EndsWith(b) => self.text(T::EndsWith, b),
            Expr::IEndsWith(b) => self.text(T::IEndsWith, b),
            Expr::IEquals(b) => self.text(T::IEquals, b),
            _ => self.refuse("uses an expression that has no meaning over a scope"),
        }
    }

    fn refuse(&mut self, why: impl Into<String>) -> Low {
        self.file.insert(why.into());
        None
    }

    fn note(&mut self, why: String) {
        self.positional.insert(why);
    }

    fn all<'e, 's: 'e>(&mut self, es: impl Iterator<Item = &'e Expr<'s>>) -> Option<Vec<Cond>> {
        // Walk every operand before giving up, so that every reason is found.
        let low: Vec<Low> = es.map(|e| self.expr(e)).collect();
        low.into_iter().collect()
    }

    fn two(&mut self, b: &ast::BinaryExpr<'_>) -> Option<[Cond; 2]> {
        let (lhs, rhs) = (self.expr(&b.lhs), self.expr(&b.rhs));
        Some([lhs?, rhs?])
    }

    fn compare(&mut self, op: Compare, b: &ast::BinaryExpr<'_>) -> Low {
        let [lhs, rhs] = self.two(b)?;
        Some(Cond::Compare(op, Box::new((lhs, rhs))))
    }

    fn text(&mut self, op: Text, b: &ast::BinaryExpr<'_>) -> Low {
        let [lhs, rhs] = self.two(b)?;
        Some(Cond::Text(op, Box::new((lhs, rhs))))
    }

    fn ident(&mut self, name: &str) -> Low {
        if let Some(i) = self.vars.iter().rposition(|(v, _)| v == name) {
            return Some(Cond::Var(i as u32));
        }
        if (self.is_rule)(name) {
            let at = self
                .references
                .iter()
                .position(|r| r == name)
                .unwrap_or_else(|| {
                    self.references.push(name.to_owned());
                    self.references.len() - 1
                });
            return Some(Cond::Rule(at as u32));
        }
        if let Some(value) = self.externals.in_memory(name) {
            self.asks_of_files |= self.externals.is_of_files(name);
            return Some(value);
        }
        self.refuse(format!("uses {name}"))
    }

    fn pattern(&mut self, name: &str) -> Option<PatternRef> {
        if name.len() <= 1 {
            return Some(PatternRef::Current);
        }
        // `#a`, `@a` and `!a` name the pattern `$a`.
        let found = self
            .patterns
            .iter()
            .position(|p| p.get(1..) == name.get(1..));
        if found.is_none() {
            self.refuse(format!("names a pattern {name} that isn't there"));
        }
        found.map(|i| PatternRef::Number(i as u32))
    }

    fn count(&mut self, p: &ast::IdentWithRange<'_>) -> Low {
        self.note(format!("counts {}", shown(p.identifier.name)));
        let pattern = self.pattern(p.identifier.name)?;
        let Some(range) = &p.range else {
            return Some(Cond::Count(pattern, None));
        };
        let (low, high) = (self.expr(&range.lower_bound), self.expr(&range.upper_bound));
        let (low, high) = (low?, high?);
        if !self.follows_match(&low) && !self.follows_match(&high) {
            return self.refuse(format!(
                "counts {} at fixed offsets",
                shown(p.identifier.name)
            ));
        }
        Some(Cond::Count(pattern, Some(Box::new((low, high)))))
    }

    fn indexed(&mut self, p: &IdentWithIndex<'_>) -> Option<(PatternRef, Box<Cond>)> {
        let pattern = self.pattern(p.identifier.name)?;
        let index = match &p.index {
            Some(e) => self.expr(e)?,
            None => Cond::Int(1),
        };
        Some((pattern, Box::new(index)))
    }

    fn anchor(&mut self, anchor: Option<&MatchAnchor<'_>>, name: &str) -> Option<Anchor> {
        let (anchor, relative) = match anchor {
            None => return Some(Anchor::Anywhere),
            Some(MatchAnchor::At(at)) => {
                let at = self.expr(&at.expr)?;
                let relative = self.follows_match(&at);
                (Anchor::At(Box::new(at)), relative)
            }
            Some(MatchAnchor::In(within)) => {
                let low = self.expr(&within.range.lower_bound);
                let high = self.expr(&within.range.upper_bound);
                let (low, high) = (low?, high?);
                let relative = self.follows_match(&low) || self.follows_match(&high);
                (Anchor::In(Box::new(low), Box::new(high)), relative)
            }
        };
        if !relative {
            self.refuse(format!("looks for {} at a fixed offset", shown(name)));
            return None;
        }
        self.note(format!("looks for {} near another match", shown(name)));
        Some(anchor)
    }

    fn pattern_set(&mut self, set: &PatternSet<'_>) -> Vec<u32> {
        let wanted = |name: &String| match set {
            PatternSet::Them { .. } => true,
            PatternSet::Set(items) => items.iter().any(|i| {
                let (name, item) = (
                    name.trim_start_matches('$'),
                    i.identifier.trim_start_matches('$'),
                );
                if i.wildcard {
                    name.starts_with(item)
                } else {
                    name == item
                }
            }),
        };
        (0u32..)
            .zip(&self.patterns)
            .filter(|(_, name)| wanted(name))
            .map(|(i, _)| i)
            .collect()
    }

    fn quantifier(&mut self, q: &ast::Quantifier<'_>) -> Option<Quantifier> {
        Some(match q {
            ast::Quantifier::None { .. } => Quantifier::None,
            ast::Quantifier::All { .. } => Quantifier::All,
            ast::Quantifier::Any { .. } => Quantifier::Any,
            ast::Quantifier::Percentage(e) => Quantifier::Percentage(Box::new(self.expr(e)?)),
            ast::Quantifier::Expr(e) => Quantifier::Count(Box::new(self.expr(e)?)),
        })
    }

    fn of(&mut self, of: &ast::Of<'_>) -> Low {
        let quantifier = self.quantifier(&of.quantifier);
        match &of.items {
            OfItems::PatternSet(set) => {
                let anchor = self.anchor(of.anchor.as_ref(), "$them")?;
                let set = self.pattern_set(set).into_iter();
                let one = |i| Cond::Match(PatternRef::Number(i), anchor.clone());
                Some(Cond::Of(quantifier?, set.map(one).collect()))
            }
            OfItems::BoolExprTuple(es) => {
                let items = self.all(es.iter())?;
                Some(Cond::OfTuple(quantifier?, items))
            }
        }
    }

    fn for_in(&mut self, f: &ast::ForIn<'_>) -> Low {
        let quantifier = self.quantifier(&f.quantifier);
        enum Over {
            Range(Box<(Cond, Cond)>),
            Tuple(Vec<Cond>),
        }
        let over = match &f.iterable {
            Iterable::Range(r) => {
                let (low, high) = (self.expr(&r.lower_bound), self.expr(&r.upper_bound));
                low.zip(high).map(|b| Over::Range(Box::new(b)))
            }
            Iterable::ExprTuple(es) => self.all(es.iter()).map(Over::Tuple),
            Iterable::Expr(e) => {
                self.expr(e);
                self.refuse("loops over a value of a module");
                None
            }
        };
        let tainted = match &over {
            Some(Over::Range(b)) => self.follows_match(&b.0) || self.follows_match(&b.1),
            Some(Over::Tuple(es)) => es.iter().any(|e| self.follows_match(e)),
            None => false,
        };
        let outer = self.vars.len();
        self.vars
            .extend(f.variables.iter().map(|v| (v.name.to_owned(), tainted)));
        let body = self.expr(&f.body);
        self.vars.truncate(outer);
        let (quantifier, body) = (quantifier?, Box::new(body?));
        Some(match over? {
            Over::Range(bounds) => Cond::ForRange(quantifier, bounds, body),
            Over::Tuple(items) => Cond::ForTuple(quantifier, items, body),
        })
    }

    fn field_access(&mut self, n: &ast::NAryExpr<'_>) -> Low {
        if let [Expr::Ident(module), Expr::FuncCall(f)] = n.as_slice() {
            return self.call(f, Some(module.name));
        }
        match n.as_slice().first() {
            Some(Expr::Ident(module)) => self.refuse(format!("uses the module {}", module.name)),
            _ => self.refuse("looks up a value of a module"),
        }
    }

    fn call(&mut self, f: &FuncCall<'_>, module: Option<&str>) -> Low {
        let args = self.all(f.args.iter());
        let module = match (&f.object, module) {
            (_, Some(m)) => m,
            (Some(Expr::Ident(m)), None) => m.name,
            (Some(object), None) => {
                self.expr(object);
                return self.refuse(format!("calls {} on a value", f.identifier.name));
            }
            (None, None) => {
                return self.refuse(format!("reads the file with {}", f.identifier.name));
            }
        };
        let function = match (module, f.identifier.name, f.args.len()) {
            ("math", "abs", 1) => Function::Abs,
            ("math", "min", 2) => Function::Min,
            ("math", "max", 2) => Function::Max,
            ("math", "in_range", 3) => Function::InRange,
            ("math", "to_number", 1) => Function::ToNumber,
            ("string", "length", 1) => Function::Length,
            ("string", "to_int", 1 | 2) => Function::ToInt,
            ("time", "now", 0) => Function::Now,
            ("console", "log" | "hex", _) => Function::Log,
            (module, name, _) => return self.refuse(format!("uses {module}.{name}")),
        };
        Some(Cond::Call(function, args?))
    }

    /// Whether a value is derived from where some match lies, and so moves along with it.
    fn follows_match(&self, c: &Cond) -> bool {
        match c {
            Cond::Offset(..) => true,
            Cond::Var(i) => self
                .vars
                .get(*i as usize)
                .is_some_and(|(_, tainted)| *tainted),
            Cond::Minus(c) | Cond::BitNot(c) => self.follows_match(c),
            Cond::Arith(_, cs) | Cond::Call(_, cs) => cs.iter().any(|c| self.follows_match(c)),
            _ => false,
        }
    }
}

/// A pattern's name as the user wrote it in the `strings` section.
fn shown(name: &str) -> String {
    match name.get(1..) {
        Some("") | None => "each pattern".to_owned(),
        Some("them") => "its patterns".to_owned(),
        Some(rest) => format!("${rest}"),
    }
}

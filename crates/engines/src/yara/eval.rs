//! Decides a lowered condition over the matches of a scope.
//!
//! Follows yara-x where it matters: an undefined value is a miss to `and`, `or`, the body of a loop
//! and the rule as a whole, and goes through everything else. On top of that, a value may be
//! *unknown*: matches may be missing, and the answer depends on them.

use super::{
    cond::{Anchor, Arith, Cond, Function, PatternRef, Quantifier},
    value::{Truth, Value, compare, either, float_op, int_op, opaque, text, to_int},
};

/// Steps after which a condition is given up; a loop's turn is some ten steps.
const FUEL: u64 = 20_000_000;

/// The matches of one pattern over the scope.
#[derive(Clone, Debug, Default)]
pub(super) struct PatternHits {
    /// Offset and length, by offset; for presence-only rules not all of them.
    pub(super) list: Vec<(u64, u64)>,
    /// How many there are, listed or not.
    pub(super) count: u64,
    /// Matches may be missing.
    pub(super) partial: bool,
}

/// Decides one rule.
pub(super) struct Evaluator<'a> {
    hits: &'a [PatternHits],
    /// Outcomes of the rules it refers to.
    rules: &'a [Truth],
    vars: Vec<Value>,
    current: Option<u32>,
    fuel: u64,
}

/// The outcome of a rule's condition, and whether it was given up for taking too long.
pub(super) fn decide(cond: &Cond, hits: &[PatternHits], rules: &[Truth]) -> (Truth, bool) {
    let mut e = Evaluator {
        hits,
        rules,
        vars: Vec::new(),
        current: None,
        fuel: FUEL,
    };
    let truth = match e.value(cond).truth() {
        Truth::Undefined => Truth::No,
        truth => truth,
    };
    if e.fuel == 0 {
        (Truth::Unknown, true)
    } else {
        (truth, false)
    }
}

impl Evaluator<'_> {
    fn truth(&mut self, c: &Cond) -> Truth {
        self.value(c).truth()
    }

    fn value(&mut self, c: &Cond) -> Value {
        self.fuel = self.fuel.saturating_sub(1);
        if self.fuel == 0 {
            return Value::Unknown;
        }
        match c {
            Cond::Bool(b) => Value::Bool(*b),
            Cond::Int(i) => Value::Int(*i),
            Cond::Float(f) => Value::Float(*f),
            Cond::Str(s) => Value::Str(s.clone()),
            Cond::Var(i) => self
                .vars
                .get(*i as usize)
                .cloned()
                .unwrap_or(Value::Undefined),
            Cond::Rule(i) => self
                .rules
                .get(*i as usize)
                .copied()
                .unwrap_or(Truth::Unknown)
                .into(),
            Cond::Match(p, anchor) => self.matched(*p, anchor).into(),
            Cond::Count(p, range) => self.count(*p, range.as_deref()),
            Cond::Offset(p, index) => self.nth(*p, index, |m| m.0),
            Cond::Length(p, index) => self.nth(*p, index, |m| m.1),
            Cond::Defined(c) => match self.value(c) {
                Value::Undefined => Value::Bool(false),
                Value::Unknown => Value::Unknown,
                _ => Value::Bool(true),
            },
            Cond::Not(c) => match self.truth(c) {
                Truth::Yes => Value::Bool(false),
                Truth::No => Value::Bool(true),
                other => other.into(),
            },
            Cond::And(cs) => self.and(cs).into(),
            Cond::Or(cs) => self.or(cs).into(),
            Cond::Minus(c) => match self.value(c) {
                Value::Int(i) => Value::Int(i.wrapping_neg()),
                Value::Float(f) => Value::Float(-f),
                other => opaque(&other),
            },
            Cond::BitNot(c) => match self.value(c) {
                Value::Int(i) => Value::Int(!i),
                other => opaque(&other),
            },
            Cond::Arith(op, cs) => self.arith(*op, cs),
            Cond::Compare(op, b) => {
                let (lhs, rhs) = (self.value(&b.0), self.value(&b.1));
                compare(*op, &lhs, &rhs).into()
            }
            Cond::Text(op, b) => match (self.value(&b.0), self.value(&b.1)) {
                (Value::Str(a), Value::Str(b)) => Value::Bool(text(*op, &a, &b)),
                (a, b) => either(&a, &b),
            },
            Cond::With(values, body) => {
                let depth = self.vars.len();
                for v in values {
                    let v = self.value(v);
                    self.vars.push(v);
                }
                let v = self.value(body);
                self.vars.truncate(depth);
                v
            }
            Cond::Call(f, args) => self.call(*f, args),
            sets => self.set(sets).into(),
        }
    }

    /// Quantifiers over sets and loops.
    fn set(&mut self, c: &Cond) -> Truth {
        match c {
            Cond::Of(q, items) => {
                let n = items.len() as u64;
                self.quantify(q, n, false, |e, i| e.truth(&items[i as usize]))
            }
            Cond::OfTuple(q, items) => {
                let n = items.len() as u64;
                self.quantify(q, n, true, |e, i| e.truth(&items[i as usize]))
            }
            Cond::ForOf(q, set, body) => {
                let outer = self.current;
                let n = set.len() as u64;
                let t = self.quantify(q, n, false, |e, i| {
                    e.current = set.get(i as usize).copied();
                    e.truth(body)
                });
                self.current = outer;
                t
            }
            Cond::ForRange(q, bounds, body) => self.for_range(q, bounds, body),
            Cond::ForTuple(q, items, body) => {
                let depth = self.vars.len();
                self.quantify(q, items.len() as u64, false, |e, i| {
                    let item = e.value(&items[i as usize]);
                    e.vars.push(item);
                    let t = e.truth(body);
                    e.vars.truncate(depth);
                    t
                })
            }
            _ => Truth::Unknown,
        }
    }

    fn and(&mut self, cs: &[Cond]) -> Truth {
        let mut known = true;
        for c in cs {
            match self.truth(c) {
                Truth::Yes => {}
                Truth::No | Truth::Undefined => return Truth::No,
                Truth::Unknown => known = false,
            }
        }
        if known { Truth::Yes } else { Truth::Unknown }
    }

    fn or(&mut self, cs: &[Cond]) -> Truth {
        let mut known = true;
        for c in cs {
            match self.truth(c) {
                Truth::Yes => return Truth::Yes,
                Truth::No | Truth::Undefined => {}
                Truth::Unknown => known = false,
            }
        }
        if known { Truth::No } else { Truth::Unknown }
    }

    fn hits(&self, p: PatternRef) -> Option<&PatternHits> {
        let number = match p {
            PatternRef::Number(n) => n,
            PatternRef::Current => self.current?,
        };
        self.hits.get(number as usize)
    }

    fn matched(&mut self, p: PatternRef, anchor: &Anchor) -> Truth {
        let (low, high) = match anchor {
            Anchor::Anywhere => (Value::Int(0), Value::Int(i64::MAX)),
            Anchor::At(at) => {
                let at = self.value(at);
                // No match starts below 0, but `in` takes such a bound for 0.
                if matches!(at, Value::Int(i) if i < 0) {
                    return Truth::No;
                }
                (at.clone(), at)
            }
            Anchor::In(low, high) => (self.value(low), self.value(high)),
        };
        let Some(hits) = self.hits(p) else {
            return Truth::Unknown;
        };
        match (low, high) {
            (Value::Int(low), Value::Int(high)) => match within(hits, low, high) {
                0 if hits.partial => Truth::Unknown,
                n => (n > 0).into(),
            },
            (Value::Undefined, _) | (_, Value::Undefined) => Truth::Undefined,
            _ if hits.list.is_empty() && !hits.partial => Truth::No,
            _ => Truth::Unknown,
        }
    }

    fn count(&mut self, p: PatternRef, range: Option<&(Cond, Cond)>) -> Value {
        let bounds = range.map(|r| (self.value(&r.0), self.value(&r.1)));
        let Some(hits) = self.hits(p) else {
            return Value::Unknown;
        };
        let n = match bounds {
            None => hits.count,
            Some((Value::Int(low), Value::Int(high))) => within(hits, low, high),
            Some((a, b)) => return either(&a, &b),
        };
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        if hits.partial {
            Value::AtLeast(n)
        } else {
            Value::Int(n)
        }
    }

    fn nth(&mut self, p: PatternRef, index: &Cond, part: impl Fn(&(u64, u64)) -> u64) -> Value {
        let index = match self.value(index) {
            Value::Int(i) => i,
            other => return opaque(&other),
        };
        let Some(hits) = self.hits(p) else {
            return Value::Unknown;
        };
        let at = usize::try_from(index).ok().and_then(|i| i.checked_sub(1));
        match at.and_then(|i| hits.list.get(i)) {
            // With one missing before it, this would be another one.
            _ if hits.partial && at.is_some() => Value::Unknown,
            Some(m) => Value::Int(part(m) as i64),
            None => Value::Undefined,
        }
    }

    fn arith(&mut self, op: Arith, cs: &[Cond]) -> Value {
        let mut values = cs.iter();
        let Some(first) = values.next() else {
            return Value::Undefined;
        };
        let mut total = self.value(first);
        for c in values {
            let v = self.value(c);
            total = match (total, v) {
                (Value::Int(a), Value::Int(b)) => int_op(op, a, b),
                (Value::Int(a), Value::Float(b)) => float_op(op, a as f64, b),
                (Value::Float(a), Value::Int(b)) => float_op(op, a, b as f64),
                (Value::Float(a), Value::Float(b)) => float_op(op, a, b),
                (a, b) => either(&a, &b),
            };
        }
        total
    }

    fn for_range(&mut self, q: &Quantifier, bounds: &(Cond, Cond), body: &Cond) -> Truth {
        let (low, high) = match (self.value(&bounds.0), self.value(&bounds.1)) {
            (Value::Int(low), Value::Int(high)) => (low, high),
            (Value::Undefined, _) | (_, Value::Undefined) => return Truth::No,
            _ => return Truth::Unknown,
        };
        if high < low {
            return Truth::No;
        }
        let n = high.abs_diff(low).saturating_add(1);
        let depth = self.vars.len();
        self.quantify(q, n, false, |e, i| {
            e.vars.push(Value::Int(low.wrapping_add_unsigned(i)));
            let t = e.truth(body);
            e.vars.truncate(depth);
            t
        })
    }

    /// Asks `item` for 0..n in order and stops where yara-x would. `strict`: an undefined item makes
    /// the whole undefined.
    fn quantify(
        &mut self,
        q: &Quantifier,
        n: u64,
        strict: bool,
        mut item: impl FnMut(&mut Self, u64) -> Truth,
    ) -> Truth {
        let wanted = match self.wanted(q, n) {
            Ok(wanted) => wanted,
            Err(truth) => return truth,
        };
        let (mut yes, mut unknown) = (0_u64, 0_u64);
        for i in 0..n {
            if self.fuel == 0 {
                return Truth::Unknown;
            }
            match item(self, i) {
                Truth::Undefined if strict => return Truth::Undefined,
                Truth::Yes => yes += 1,
                Truth::Unknown => unknown += 1,
                Truth::No | Truth::Undefined => {
                    if matches!(q, Quantifier::All) {
                        return Truth::No;
                    }
                    continue;
                }
            }
            if yes > 0 && wanted == 0 {
                return Truth::No;
            }
            if !matches!(q, Quantifier::All) && wanted > 0 && yes >= wanted {
                return Truth::Yes;
            }
        }
        if wanted == 0 {
            return if unknown == 0 {
                Truth::Yes
            } else {
                Truth::Unknown
            };
        }
        if yes >= wanted {
            Truth::Yes
        } else if yes + unknown >= wanted {
            Truth::Unknown
        } else {
            Truth::No
        }
    }

    /// How many of `n` a quantifier asks for; 0 means none of them may hold.
    fn wanted(&mut self, q: &Quantifier, n: u64) -> Result<u64, Truth> {
        let (value, percent) = match q {
            Quantifier::None => return Ok(0),
            Quantifier::Any => return Ok(1),
            Quantifier::All => return Ok(n),
            Quantifier::Percentage(c) => (self.value(c), true),
            Quantifier::Count(c) => (self.value(c), false),
        };
        let value = match value {
            Value::Int(i) => i,
            Value::Undefined => return Err(Truth::Undefined),
            _ => return Err(Truth::Unknown),
        };
        // A negative number can't be reached.
        let value = u64::try_from(value).unwrap_or(u64::MAX);
        if !percent || value == u64::MAX {
            return Ok(value);
        }
        Ok((n as f64 * value as f64 / 100.0).ceil() as u64)
    }

    fn call(&mut self, f: Function, args: &[Cond]) -> Value {
        let args: Vec<Value> = args.iter().map(|a| self.value(a)).collect();
        match (f, args.as_slice()) {
            (Function::Abs, [Value::Int(a)]) => Value::Int(a.wrapping_abs()),
            (Function::Min, [Value::Int(a), Value::Int(b)]) => Value::Int(*a.min(b)),
            (Function::Max, [Value::Int(a), Value::Int(b)]) => Value::Int(*a.max(b)),
            (Function::InRange, [Value::Int(x), Value::Int(a), Value::Int(b)]) => {
                Value::Bool((a..=b).contains(&x))
            }
            (Function::InRange, [Value::Float(x), Value::Float(a), Value::Float(b)]) => {
                Value::Bool(a <= x && x <= b)
            }
            (Function::ToNumber, [Value::Bool(b)]) => Value::Int((*b).into()),
            (Function::Length, [Value::Str(s)]) => Value::Int(s.len() as i64),
            (Function::ToInt, [Value::Str(s)]) => to_int(s, 10),
            (Function::ToInt, [Value::Str(s), Value::Int(base)]) => to_int(s, *base),
            (Function::Now, []) => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(Value::Undefined, |d| Value::Int(d.as_secs() as i64))
            }
            (Function::Log, args) if args.iter().any(|a| matches!(a, Value::Undefined)) => {
                Value::Undefined
            }
            (Function::Log, _) => Value::Bool(true),
            (_, args) if args.iter().any(|a| matches!(a, Value::Undefined)) => Value::Undefined,
            _ => Value::Unknown,
        }
    }
}

/// Listed matches that start in `low..=high`.
fn within(hits: &PatternHits, low: i64, high: i64) -> u64 {
    let Ok(high) = u64::try_from(high) else {
        return 0;
    };
    let low = u64::try_from(low).unwrap_or(0);
    let from = hits.list.partition_point(|m| m.0 < low);
    let to = hits.list.partition_point(|m| m.0 <= high);
    to.saturating_sub(from) as u64
}

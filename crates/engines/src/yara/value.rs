//! Values that conditions compute with, and the operators on them.

use super::cond::{Arith, Compare, Text};

/// A yes, a no, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    /// Depends on matches that may be missing, or took too long.
    Unknown,
    /// Has no value, as `@a[3]` when there are two.
    Undefined,
}

impl From<bool> for Truth {
    fn from(b: bool) -> Self {
        if b { Self::Yes } else { Self::No }
    }
}

/// The value of an expression.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined,
    Unknown,
    Bool(bool),
    Int(i64),
    /// A count of which only a lower bound is known.
    AtLeast(i64),
    Float(f64),
    Str(Vec<u8>),
}

impl From<Truth> for Value {
    fn from(t: Truth) -> Self {
        match t {
            Truth::Yes => Self::Bool(true),
            Truth::No => Self::Bool(false),
            Truth::Unknown => Self::Unknown,
            Truth::Undefined => Self::Undefined,
        }
    }
}

impl Value {
    /// As a condition.
    pub(super) fn truth(&self) -> Truth {
        match self {
            Self::Undefined => Truth::Undefined,
            Self::Unknown => Truth::Unknown,
            Self::Bool(b) => (*b).into(),
            Self::Int(i) => (*i != 0).into(),
            Self::AtLeast(i) if *i > 0 => Truth::Yes,
            Self::AtLeast(_) => Truth::Unknown,
            Self::Float(f) => (*f != 0.0).into(),
            Self::Str(s) => (!s.is_empty()).into(),
        }
    }
}

pub(super) fn to_int(s: &[u8], base: i64) -> Value {
    let base = u32::try_from(base).ok().filter(|b| (2..=36).contains(b));
    let number = base.zip(std::str::from_utf8(s).ok());
    match number.and_then(|(base, s)| i64::from_str_radix(s, base).ok()) {
        Some(i) => Value::Int(i),
        None => Value::Undefined,
    }
}

/// What an operator makes of an operand that isn't of its type.
pub(super) fn opaque(v: &Value) -> Value {
    match v {
        Value::Undefined => Value::Undefined,
        _ => Value::Unknown,
    }
}

pub(super) fn either(a: &Value, b: &Value) -> Value {
    match (a, b) {
        (Value::Undefined, _) | (_, Value::Undefined) => Value::Undefined,
        _ => Value::Unknown,
    }
}

pub(super) fn int_op(op: Arith, a: i64, b: i64) -> Value {
    let shift = |f: fn(i64, u32) -> i64| match b {
        // yara-x compares the amount with 64 as a signed number and takes it modulo 64.
        ..64 => f(a, (b & 63) as u32),
        _ => 0,
    };
    let value = match op {
        Arith::Add => Some(a.wrapping_add(b)),
        Arith::Sub => Some(a.wrapping_sub(b)),
        Arith::Mul => Some(a.wrapping_mul(b)),
        Arith::Div => a.checked_div(b),
        Arith::Mod if b == 0 => None,
        Arith::Mod => Some(a.wrapping_rem(b)),
        Arith::Shl => Some(shift(i64::wrapping_shl)),
        Arith::Shr => Some(shift(i64::wrapping_shr)),
        Arith::And => Some(a & b),
        Arith::Or => Some(a | b),
        Arith::Xor => Some(a ^ b),
    };
    value.map_or(Value::Undefined, Value::Int)
}

pub(super) fn float_op(op: Arith, a: f64, b: f64) -> Value {
    match op {
        Arith::Add => Value::Float(a + b),
        Arith::Sub => Value::Float(a - b),
        Arith::Mul => Value::Float(a * b),
        Arith::Div => Value::Float(a / b),
        _ => Value::Unknown,
    }
}

pub(super) fn compare(op: Compare, a: &Value, b: &Value) -> Truth {
    let number = |v: &Value| match v {
        Value::Int(i) => Some(*i),
        Value::Bool(b) => Some(i64::from(*b)),
        _ => None,
    };
    let order = match (a, b) {
        (Value::Str(a), Value::Str(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => return float_compare(op, *a, *b),
        (Value::Float(a), b) if number(b).is_some() => {
            return float_compare(op, *a, number(b).unwrap_or_default() as f64);
        }
        (a, Value::Float(b)) if number(a).is_some() => {
            return float_compare(op, number(a).unwrap_or_default() as f64, *b);
        }
        (Value::AtLeast(least), b) => return bounded(op, *least, number(b)),
        (a, Value::AtLeast(least)) => return bounded(mirrored(op), *least, number(a)),
        _ => number(a).zip(number(b)).map(|(a, b)| a.cmp(&b)),
    };
    match order {
        Some(order) => holds(op, order).into(),
        None => either(a, b).truth(),
    }
}

fn holds(op: Compare, order: std::cmp::Ordering) -> bool {
    match op {
        Compare::Eq => order.is_eq(),
        Compare::Ne => order.is_ne(),
        Compare::Lt => order.is_lt(),
        Compare::Gt => order.is_gt(),
        Compare::Le => order.is_le(),
        Compare::Ge => order.is_ge(),
    }
}

fn float_compare(op: Compare, a: f64, b: f64) -> Truth {
    match a.partial_cmp(&b) {
        Some(order) => holds(op, order),
        None => op == Compare::Ne,
    }
    .into()
}

fn mirrored(op: Compare) -> Compare {
    match op {
        Compare::Lt => Compare::Gt,
        Compare::Gt => Compare::Lt,
        Compare::Le => Compare::Ge,
        Compare::Ge => Compare::Le,
        same => same,
    }
}

/// Compares a count of which only the lower bound `least` is known with `n`.
fn bounded(op: Compare, least: i64, n: Option<i64>) -> Truth {
    let Some(n) = n else { return Truth::Unknown };
    match op {
        Compare::Ge if least >= n => Truth::Yes,
        Compare::Gt if least > n => Truth::Yes,
        Compare::Lt if least >= n => Truth::No,
        Compare::Le if least > n => Truth::No,
        Compare::Eq if least > n => Truth::No,
        Compare::Ne if least > n => Truth::Yes,
        _ => Truth::Unknown,
    }
}

pub(super) fn text(op: Text, a: &[u8], b: &[u8]) -> bool {
    let (x, y) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let contains = |a: &[u8], b: &[u8]| b.is_empty() || a.windows(b.len()).any(|w| w == b);
    match op {
        Text::Contains => contains(a, b),
        Text::IContains => contains(&x, &y),
        Text::StartsWith => a.starts_with(b),
        Text::IStartsWith => x.starts_with(&y),
        Text::EndsWith => a.ends_with(b),
        Text::IEndsWith => x.ends_with(&y),
        Text::IEquals => x == y,
    }
}

//! Conditions of memory-safe rules, lowered from the syntax tree to what is needed to decide them.
//!
//! A condition that never looks at the data is a pure function of its patterns' matches: offsets and
//! lengths. So it is decided over the matches of all chunks together, with no bytes at hand.

use serde::{Deserialize, Serialize};

/// A pattern, by number or as the `$` of the innermost `for .. of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PatternRef {
    Number(u32),
    Current,
}

/// Where a match has to start; both ends inclusive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Anchor {
    Anywhere,
    At(Box<Cond>),
    In(Box<Cond>, Box<Cond>),
}

/// How many of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Quantifier {
    None,
    All,
    Any,
    Percentage(Box<Cond>),
    Count(Box<Cond>),
}

/// Arithmetic, left to right over any number of operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Shl,
    Shr,
    And,
    Or,
    Xor,
}

/// Comparisons of numbers or strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Gt,
    Le,
    Ge,
}

/// Comparisons of strings only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Text {
    Contains,
    IContains,
    StartsWith,
    IStartsWith,
    EndsWith,
    IEndsWith,
    IEquals,
}

/// Functions that look at their arguments only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Function {
    Abs,
    Min,
    Max,
    InRange,
    ToNumber,
    Length,
    ToInt,
    Now,
    Log,
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Cond {
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Vec<u8>),
    /// A loop or `with` variable, counted from the outermost.
    Var(u32),
    /// A rule: position in `RuleInfo::references`.
    Rule(u32),
    Match(PatternRef, Anchor),
    Count(PatternRef, Option<Box<(Cond, Cond)>>),
    Offset(PatternRef, Box<Cond>),
    Length(PatternRef, Box<Cond>),
    Defined(Box<Cond>),
    Not(Box<Cond>),
    And(Vec<Cond>),
    Or(Vec<Cond>),
    Minus(Box<Cond>),
    BitNot(Box<Cond>),
    Arith(Arith, Vec<Cond>),
    Compare(Compare, Box<(Cond, Cond)>),
    Text(Text, Box<(Cond, Cond)>),
    /// Patterns, each with its anchor: an undefined anchor is a miss.
    Of(Quantifier, Vec<Cond>),
    /// Expressions: one that is undefined makes the whole undefined.
    OfTuple(Quantifier, Vec<Cond>),
    ForOf(Quantifier, Vec<u32>, Box<Cond>),
    ForRange(Quantifier, Box<(Cond, Cond)>, Box<Cond>),
    ForTuple(Quantifier, Vec<Cond>, Box<Cond>),
    With(Vec<Cond>, Box<Cond>),
    Call(Function, Vec<Cond>),
}

//! JSON in SQL: `fields->>'host'` gives the text of a member, `fields->'matches'->0` its JSON.
//!
//! | | |
//! | --- | --- |
//! | `json -> key` = `json_get(json, key)` | the member or element as JSON |
//! | `json ->> key` = `json_text(json, key)` | its text: a string without quotes, anything else as JSON; null for null |
//! | `json_number(json, key)` | as a number, where it is one |
//! | `json_contains(json, key)` | whether there is such a member or element |
//!
//! Keys are names, or numbers for elements of arrays. What is no JSON has no members.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::expr::{BinaryExpr, InList};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    Between, ColumnarValue, Expr, Like, ScalarUDF, Volatility, cast, create_udf,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// A member of an object or an element of an array.
fn member<'a>(v: &'a Value, key: &str) -> Option<&'a Value> {
    match v {
        Value::Object(all) => all.get(key),
        Value::Array(all) => all.get(key.parse::<usize>().ok()?),
        _ => None,
    }
}

fn text(v: &Value) -> Option<String> {
    match v {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    }
}

/// A function of a JSON text and a key, applied to each row.
fn function(
    name: &str,
    returns: DataType,
    of: fn(&mut dyn Iterator<Item = Option<Value>>) -> ArrayRef,
) -> Arc<ScalarUDF> {
    let apply = move |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let (json, keys) = (arrays[0].as_string::<i32>(), arrays[1].as_string::<i32>());
        let mut found = (0..json.len()).map(|i| {
            if json.is_null(i) || keys.is_null(i) {
                return None;
            }
            let parsed: Value = serde_json::from_str(json.value(i)).ok()?;
            member(&parsed, keys.value(i)).cloned()
        });
        let out = of(&mut found);
        let scalar = args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&out, 0)?)
        } else {
            ColumnarValue::Array(out)
        })
    };
    let types = vec![DataType::Utf8, DataType::Utf8];
    Arc::new(create_udf(
        name,
        types,
        returns,
        Volatility::Immutable,
        Arc::new(apply),
    ))
}

static GET: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    function("json_get", DataType::Utf8, |rows| {
        Arc::new(
            rows.map(|v| v.map(|v| v.to_string()))
                .collect::<StringArray>(),
        )
    })
});
static TEXT: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    function("json_text", DataType::Utf8, |rows| {
        Arc::new(
            rows.map(|v| v.as_ref().and_then(text))
                .collect::<StringArray>(),
        )
    })
});
static NUMBER: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    function("json_number", DataType::Float64, |rows| {
        Arc::new(
            rows.map(|v| v.and_then(|v| v.as_f64()))
                .collect::<Float64Array>(),
        )
    })
});
static CONTAINS: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
    function("json_contains", DataType::Boolean, |rows| {
        Arc::new(rows.map(|v| Some(v.is_some())).collect::<BooleanArray>())
    })
});

/// Plans `->` and `->>`.
#[derive(Debug)]
struct Arrows;

impl ExprPlanner for Arrows {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        _: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match expr.op {
            BinaryOperator::Arrow => &GET,
            BinaryOperator::LongArrow => &TEXT,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let left = expr.left;
        let call = |key| function.call(vec![left.clone(), cast(key, DataType::Utf8)]);
        Ok(PlannerResult::Planned(at_key(expr.right, &call)))
    }
}

/// The parser binds comparisons tighter than arrows: in `f->>'a' = 'b'` it takes `'a' = 'b'` for the key. No key is a
/// comparison, so the arrow belongs to what stands first in it.
fn at_key(right: Expr, call: &dyn Fn(Expr) -> Expr) -> Expr {
    let inner = |e: Box<Expr>| Box::new(at_key(*e, call));
    match right {
        Expr::BinaryExpr(b) => Expr::BinaryExpr(BinaryExpr::new(inner(b.left), b.op, b.right)),
        Expr::IsNull(e) => Expr::IsNull(inner(e)),
        Expr::IsNotNull(e) => Expr::IsNotNull(inner(e)),
        Expr::Like(l) => Expr::Like(Like {
            expr: inner(l.expr),
            ..l
        }),
        Expr::InList(l) => Expr::InList(InList {
            expr: inner(l.expr),
            ..l
        }),
        Expr::Between(b) => Expr::Between(Between {
            expr: inner(b.expr),
            ..b
        }),
        key => call(key),
    }
}

/// Makes the functions and operators known to a session.
pub(crate) fn register(context: &mut SessionContext) -> Result<()> {
    for f in [&GET, &TEXT, &NUMBER, &CONTAINS] {
        context.register_udf(Arc::clone(f))?;
    }
    context.register_expr_planner(Arc::new(Arrows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::util::display::{ArrayFormatter, FormatOptions};

    async fn answer(sql: &str) -> String {
        let mut context = SessionContext::new();
        register(&mut context).expect("registered");
        let batches = context
            .sql(sql)
            .await
            .expect(sql)
            .collect()
            .await
            .expect(sql);
        let options = FormatOptions::default().with_null("NULL");
        let column = batches[0].column(0);
        ArrayFormatter::try_new(column, &options)
            .expect("text")
            .value(0)
            .to_string()
    }

    #[tokio::test]
    async fn members_as_json_and_as_text() {
        let json = r#"'{"host":"a","n":7,"x":null,"m":[{"o":5}]}'"#;
        for (ask, want) in [
            ("->>'host'", "a"),
            ("->'host'", "\"a\""),
            ("->>'n'", "7"),
            ("->>'x'", "NULL"),
            ("->>'none'", "NULL"),
            ("->'m'->0->>'o'", "5"),
        ] {
            assert_eq!(answer(&format!("SELECT {json}{ask}")).await, want, "{ask}");
        }
        assert_eq!(
            answer(&format!("SELECT json_number({json}, 'n') + 1")).await,
            "8.0"
        );
        assert_eq!(
            answer(&format!("SELECT json_contains({json}, 'x')")).await,
            "true"
        );
        assert_eq!(answer("SELECT 'no json'->>'a'").await, "NULL");
        for condition in [
            "f->>'host' = 'a'",
            "f->>'host' = 'a' AND f->>'n' = 7",
            "f->>'host' LIKE 'a%'",
            "f->>'host' IN ('a', 'b')",
            "f->>'host' IS NOT NULL",
            "f->>'host' || 'x' = 'ax'",
            "f->'m'->0->>'o' = '5'",
        ] {
            let sql = format!(
                "SELECT count(*) FROM (VALUES ({json}), ('{{}}')) AS t(f) WHERE {condition}"
            );
            assert_eq!(answer(&sql).await, "1", "{condition}");
        }
    }
}

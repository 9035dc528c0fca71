//! `--json`: the agent's document as it came, on one line, with `schema_version` first.
//!
//! Fields that this program does not know pass through: a script may be newer than the command line.

use crate::errors::CliError;
use catena_rpc::{SCHEMA_VERSION, Text};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Document<'a, V> {
    schema_version: u32,
    #[serde(flatten)]
    fields: BTreeMap<&'a String, &'a V>,
}

/// `value` (an object, or null for an empty one) as a line of JSON.
pub(crate) fn document(value: &Value) -> Result<String, CliError> {
    match value {
        Value::Object(fields) => line(fields),
        Value::Null => line::<Value>([]),
        other => Err(CliError::bad_answer(format!("{other} is no document"))),
    }
}

/// The same for an object that nobody looked into.
pub(crate) fn text(text: &Text) -> Result<String, CliError> {
    line(&text.fields())
}

fn line<'a, V: Serialize + 'a>(
    fields: impl IntoIterator<Item = (&'a String, &'a V)>,
) -> Result<String, CliError> {
    let fields = fields.into_iter().filter(|(name, _)| *name != "schema_version").collect();
    let document = Document { schema_version: SCHEMA_VERSION, fields };
    serde_json::to_string(&document).map(|text| text + "\n").map_err(CliError::bad_answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_comes_first_and_once() {
        assert_eq!(document(&Value::Null).unwrap(), "{\"schema_version\":1}\n");
        let text = document(&json!({"a": 1, "schema_version": 1, "zeta": [1]})).unwrap();
        assert_eq!(text, "{\"schema_version\":1,\"a\":1,\"zeta\":[1]}\n");
        assert!(document(&json!([])).is_err());
        let long = Text::from(json!({"schema_version": 1, "vdis": [{"a": null}]}));
        assert_eq!(super::text(&long).unwrap(), "{\"schema_version\":1,\"vdis\":[{\"a\":null}]}\n");
    }
}

//! `--json`: the agent's document as it came, on one line, with `schema_version` first.
//!
//! Fields that this program does not know pass through: a script may be newer than the command line.

use crate::errors::CliError;
use catena_rpc::SCHEMA_VERSION;
use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

/// `value` (an object, or null for an empty one) as a line of JSON.
pub(crate) fn document(value: &Value) -> Result<String, CliError> {
    let mut fields = match value {
        Value::Object(fields) => fields.clone(),
        Value::Null => Map::new(),
        other => return Err(CliError::bad_answer(format!("{other} is no document"))),
    };
    fields.remove("schema_version");
    let document = Document { schema_version: SCHEMA_VERSION, fields: &fields };
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
    }
}

//! `show`: a record as lines of name and value.

use super::printable;
use catena_types::Bytes;
use serde::Serialize;
use serde_json::Value;

/// The fields of `record`, one a line, sizes also in units for people.
pub(crate) fn render(record: &Value) -> String {
    let Value::Object(fields) = record else { return String::new() };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    fields.iter().map(|(name, value)| line(name, width, value)).collect()
}

/// One field, its name padded to `width`.
pub(crate) fn line(name: &str, width: usize, value: &Value) -> String {
    format!("{name:width$}  {}\n", field(name, value))
}

/// The word that a state or a kind has on the wire.
pub(crate) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).map(|value| field("", &value)).unwrap_or_default()
}

fn field(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if is_size(name) && bytes >= 1024 => format!("{bytes} ({})", Bytes(bytes)),
            _ => number.to_string(),
        },
        Value::Bool(flag) => flag.to_string(),
        Value::Object(map) if map.contains_key("message") => field("", &map["message"]),
        Value::Object(map) if map.is_empty() => "-".to_owned(),
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(key, value)| format!("{}={}", printable(key), inner(key, value))).collect();
            pairs.join(" ")
        }
        Value::Array(values) => values.iter().map(|value| field("", value)).collect::<Vec<_>>().join(", "),
    }
}

/// A field of a field: one that has fields itself is in brackets.
fn inner(name: &str, value: &Value) -> String {
    let text = field(name, value);
    if value.is_object() { format!("({text})") } else { text }
}

/// The fields whose numbers are bytes.
fn is_size(name: &str) -> bool {
    const NAMES: [&str; 4] = ["physical_utilisation", "virtual_allocation", "free_space", "rate"];
    NAMES.contains(&name)
        || name.ends_with("_size")
        || name.ends_with("_bytes")
        || name.starts_with("bytes_")
        || matches!(name, "bytes" | "coalesce.rate" | "coalesce.floor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_is_one_line_a_field() {
        let text = render(&json!({
            "name_label": "a\u{1b}[2Jb", "virtual_size": 2_097_152, "depth": 4096, "attached": null,
            "other_config": {"k": "v", "w": ""}, "error": {"name": "io_error", "message": "gone"}, "reflink": true,
        }));
        assert_eq!(
            text,
            "attached      -\n\
             depth         4096\n\
             error         gone\n\
             name_label    a\u{fffd}[2Jb\n\
             other_config  k=v w=-\n\
             reflink       true\n\
             virtual_size  2097152 (2.0 MiB)\n"
        );
        assert_eq!(
            line("serving", 7, &json!({"pid": 7, "read": {"count": 2, "failed": 0}})),
            "serving  pid=7 read=(count=2 failed=0)\n"
        );
    }
}

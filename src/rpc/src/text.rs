//! A result as the text that it has on the wire, until somebody looks into it: a list of ten thousand disks passes three
//! processes, and only its maker and its reader need to know what it says.
//!
//! Invariant: the text is one JSON value without newlines.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;

/// A JSON value as text.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Text(Box<RawValue>);

impl Text {
    /// The text of a value whose objects have texts as keys; of others that of null.
    pub fn of(value: &impl Serialize) -> Self {
        Self(to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }

    /// What it says.
    pub fn value(&self) -> Value {
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }

    /// The fields of an object, each as text; none of another value.
    pub fn fields(&self) -> BTreeMap<String, Self> {
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }

    /// The items of an array, each as text; none of another value.
    pub fn items(&self) -> Vec<Self> {
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }
}

impl From<Value> for Text {
    fn from(value: Value) -> Self {
        Self::of(&value)
    }
}

impl PartialEq for Text {
    /// Whether both say the same.
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::deserialize(from).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_says_what_the_value_said() {
        let value = json!({"a": [1, {"b": null}], "c": "d"});
        let text = Text::from(value.clone());
        assert_eq!(text.value(), value);
        assert_eq!(text.fields()["a"].items()[1].value(), json!({"b": null}));
        assert_eq!(serde_json::to_value(&text).unwrap(), value);
        assert!(text.items().is_empty() && text.fields()["c"].fields().is_empty());
    }
}

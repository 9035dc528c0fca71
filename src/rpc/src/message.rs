//! The envelope: requests, responses and notifications of JSON-RPC 2.0.

use crate::text::Text;
use catena_types::{ErrorName, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request's id, as its sender chose it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// In an answer only: to a line whose id could not be read.
    Null,
}

/// What a request came to, where that is found out.
pub type Outcome = Result<Value, Failure>;

/// What a request came to, on its way to who asked.
pub type Reply = Result<Text, Failure>;

/// A call that wants an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Repeated in the answer.
    pub id: Id,
    /// `SR.list`, `VDI.create`, ...
    pub method: String,
    /// An object, or null.
    pub params: Value,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The request's id.
    pub id: Id,
    /// Result or failure.
    pub outcome: Reply,
}

/// A message that wants no answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// What it is: `event`, ...
    pub method: String,
    /// Its content.
    pub params: Value,
}

/// One line of the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A call.
    Request(Request),
    /// An answer.
    Response(Response),
    /// News.
    Notification(Notification),
}

#[derive(Deserialize)]
struct RawMessage {
    jsonrpc: Option<String>,
    id: Option<Id>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
    result: Option<Text>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    code: i32,
    message: String,
    data: Option<Failure>,
}

/// A message as it is written, from where its content lies: a list of all VDIs is long, and need not be copied.
#[derive(Default, Serialize)]
struct Line<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl Message {
    /// Reads one line. A line that is no JSON-RPC 2.0 message is a `bad_request` that says why.
    pub fn parse(line: &[u8]) -> Result<Self, Failure> {
        let bad = |why: String| Failure::new(ErrorName::BadRequest, why);
        let raw: RawMessage =
            serde_json::from_slice(line).map_err(|e| bad(format!("not a JSON-RPC message: {e}")))?;
        if raw.jsonrpc.as_deref() != Some("2.0") {
            return Err(bad("not JSON-RPC 2.0".to_owned()));
        }
        match (raw.id, raw.method, raw.result, raw.error) {
            (Some(id), Some(method), None, None) => {
                Ok(Self::Request(Request { id, method, params: raw.params }))
            }
            (None, Some(method), None, None) => {
                Ok(Self::Notification(Notification { method, params: raw.params }))
            }
            (Some(id), None, result, None) => Ok(Self::Response(Response {
                id,
                outcome: Ok(result.unwrap_or_else(|| Text::from(Value::Null))),
            })),
            (id, None, None, Some(error)) => Ok(Self::Response(Response {
                id: id.unwrap_or(Id::Null),
                outcome: Err(error.into_failure()),
            })),
            _ => Err(bad("neither a request nor a response nor a notification".to_owned())),
        }
    }

    /// As one line, with its newline.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = Line { jsonrpc: "2.0", ..Line::default() };
        match self {
            Self::Request(Request { id, method, params }) => {
                (line.id, line.method, line.params) = (Some(id), Some(method.as_str()), Some(params));
            }
            Self::Notification(Notification { method, params }) => {
                (line.method, line.params) = (Some(method.as_str()), Some(params));
            }
            Self::Response(Response { id, outcome: Ok(result) }) => {
                (line.id, line.result) = (Some(id), Some(result));
            }
            Self::Response(Response { id, outcome: Err(failure) }) => {
                let error = json!({"code": failure.name.code(), "message": failure.message, "data": failure});
                (line.id, line.error) = (Some(id), Some(error));
            }
        }
        // Cannot fail: the keys of all objects are texts.
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl RawError {
    fn into_failure(self) -> Failure {
        self.data.unwrap_or_else(|| {
            let name = ErrorName::ALL.iter().copied().find(|name| name.code() == self.code);
            Failure::new(name.unwrap_or(ErrorName::IoError), self.message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_message_survives_the_wire() {
        let failure =
            Failure::new(ErrorName::ChainTooLong, "31 images").hint("merge first").object("vdi", "x");
        let messages = [
            Message::Request(Request {
                id: Id::Number(7),
                method: "SR.list".into(),
                params: json!({"sr": "a"}),
            }),
            Message::Response(Response { id: Id::Text("a".into()), outcome: Ok(json!({"srs": []}).into()) }),
            Message::Response(Response { id: Id::Number(1), outcome: Err(failure.clone()) }),
            Message::Response(Response { id: Id::Null, outcome: Err(failure) }),
            Message::Notification(Notification { method: "event".into(), params: json!({}) }),
        ];
        for message in messages {
            assert_eq!(Message::parse(&message.to_line()).unwrap(), message);
        }
    }

    #[test]
    fn other_lines_are_bad_requests() {
        for line in [
            "",
            "[]",
            "{}",
            "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"x\"}",
            "{\"jsonrpc\":\"2.0\"}",
            "\u{1}",
        ] {
            assert_eq!(Message::parse(line.as_bytes()).unwrap_err().name, ErrorName::BadRequest, "{line}");
        }
    }
}

//! Texts as tags of lvm2, and back.
//!
//! A tag takes few characters: the others are written as `#` and two hexadecimal digits. A long text takes several tags,
//! `catena.NAME=...`, `catena.NAME.1=...`. Tags of others are left alone. Used by `marker` and by the labels of `store`.

use catena_sr_api::Labels;
use std::collections::{BTreeMap, BTreeSet};

/// What our tags begin with.
pub(crate) const PREFIX: &str = "catena.";
/// The most characters of a text that one tag takes; lvm2's limit is 1024 with the name.
const PIECE: usize = 900;

/// The tags that say these texts, by name.
pub(crate) fn write(texts: &Labels) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    for (name, text) in texts {
        let encoded = encode(text);
        tags.insert(format!("{PREFIX}{name}={}", &encoded[..encoded.len().min(PIECE)]));
        let rest = encoded.get(PIECE..).unwrap_or_default().as_bytes();
        for (n, piece) in rest.chunks(PIECE).enumerate() {
            tags.insert(format!("{PREFIX}{name}.{}={}", n + 1, String::from_utf8_lossy(piece)));
        }
    }
    tags
}

/// What our tags among these say.
pub(crate) fn read(tags: &BTreeSet<String>) -> Labels {
    let mut pieces: BTreeMap<&str, BTreeMap<usize, &str>> = BTreeMap::new();
    for (name, piece) in tags.iter().filter_map(|tag| tag.strip_prefix(PREFIX)?.split_once('=')) {
        let (name, number) = match name.split_once('.') {
            Some((name, number)) => (name, number.parse().ok()),
            None => (name, Some(0)),
        };
        if let Some(number) = number {
            pieces.entry(name).or_default().insert(number, piece);
        }
    }
    let text = |pieces: BTreeMap<usize, &str>| decode(&pieces.into_values().collect::<String>());
    pieces.into_iter().filter_map(|(name, pieces)| Some((name.to_owned(), text(pieces)?))).collect()
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_+.-/=!:&".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("#{byte:02x}"));
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let (byte, tail) = match first {
            b'#' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                (u8::from_str_radix(digits, 16).ok()?, &tail[2..])
            }
            other => (*other, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let pairs = [
            ("label", "web \"01\", \u{fc}\n#=".to_owned()),
            ("empty", String::new()),
            ("description", "\u{1F980} long ".repeat(400)),
            ("other_config", "x".repeat(PIECE)),
        ];
        let texts: Labels = pairs.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        let mut tags = write(&texts);
        assert!(tags.len() > 10);
        for tag in &tags {
            assert!(tag.len() <= 1024, "{tag}");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&byte);
            assert!(tag.bytes().all(plain), "{tag}");
        }
        tags.insert("somebody=else".to_owned());
        assert_eq!(read(&tags), texts);
    }

    #[test]
    fn what_was_not_written_here_says_nothing() {
        for tag in ["catena.a=#", "catena.a=#zz", "catena.a=#ff", "catena.a.x=1", "catena.a", "a=1"] {
            assert_eq!(read(&BTreeSet::from([tag.to_owned()])), Labels::new(), "{tag}");
        }
    }
}

//! Times as people type them: RFC 3339, a time of day (`07:00`), or a duration (`1h`, `30m`, `2d`).
//!
//! For `--since` the shorter forms look back, for `--until` ahead. Times of day are local.

use crate::output::printable;
use jiff::civil::Time;
use jiff::{RoundMode, Span, Timestamp, TimestampRound, ToSpan, Unit, Zoned};

/// A time in the past: `1h` is an hour ago, `07:00` the latest seven o'clock.
pub(crate) fn since(text: &str) -> Result<Timestamp, String> {
    parse(text, &Zoned::now(), Direction::Back)
}

/// A time to come: `1h` is in an hour, `07:00` the next seven o'clock.
pub(crate) fn until(text: &str) -> Result<Timestamp, String> {
    parse(text, &Zoned::now(), Direction::Ahead)
}

/// A time of a document as tables have it: to the second.
pub(crate) fn shown(time: &str) -> String {
    let second = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Trunc);
    let whole = time.parse::<Timestamp>().ok().and_then(|time| time.round(second).ok());
    whole.map_or_else(|| printable(time), |time| time.to_string())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Back,
    Ahead,
}

fn parse(text: &str, now: &Zoned, direction: Direction) -> Result<Timestamp, String> {
    let unclear =
        || format!("'{text}' is not a time: give 2030-01-31T07:00:00Z, 07:00, or a duration such as 1h");
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        if let Ok(time) = text.parse::<Time>() {
            return time_of_day(time, now, direction).map_err(|_| unclear());
        }
        if let Ok(span) = text.parse::<Span>() {
            let moved = match direction {
                Direction::Back => now.checked_sub(span),
                // To the second: it will be shown to people.
                Direction::Ahead => now.checked_add(span).and_then(|time| time.round(Unit::Second)),
            };
            return moved.map(|time| time.timestamp()).map_err(|_| unclear());
        }
    }
    Err(unclear())
}

fn time_of_day(time: Time, now: &Zoned, direction: Direction) -> Result<Timestamp, jiff::Error> {
    let today = now.with().time(time).build()?;
    let there = match direction {
        Direction::Back if today > *now => today.checked_sub(1.day())?,
        Direction::Ahead if today <= *now => today.checked_add(1.day())?,
        _ => today,
    };
    Ok(there.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_times_to_the_second() {
        assert_eq!(shown("2030-01-01T00:00:00.999999999Z"), "2030-01-01T00:00:00Z");
        assert_eq!(shown("some \u{7} day"), "some \u{fffd} day");
    }

    #[test]
    fn times_are_read_relative_to_now() {
        let now: Zoned = "2030-03-10T12:00:00+01:00[Europe/Berlin]".parse().unwrap();
        for (text, direction, expected) in [
            ("2030-01-31T07:00:00Z", Direction::Back, "2030-01-31T07:00:00Z"),
            ("2030-01-31T07:00:00+02:00", Direction::Ahead, "2030-01-31T05:00:00Z"),
            ("07:00", Direction::Back, "2030-03-10T06:00:00Z"),
            ("07:00", Direction::Ahead, "2030-03-11T06:00:00Z"),
            ("12:00", Direction::Ahead, "2030-03-11T11:00:00Z"),
            ("23:30", Direction::Back, "2030-03-09T22:30:00Z"),
            ("23:30", Direction::Ahead, "2030-03-10T22:30:00Z"),
            ("1h", Direction::Back, "2030-03-10T10:00:00Z"),
            ("30m", Direction::Ahead, "2030-03-10T11:30:00Z"),
            ("2d", Direction::Back, "2030-03-08T11:00:00Z"),
        ] {
            assert_eq!(parse(text, &now, direction).unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "never", "-1h", "25:00", "7", "1 fortnight"] {
            assert!(parse(text, &now, Direction::Back).is_err(), "{text}");
        }
    }
}

//! How far long work is: phase, bytes, rate and time left, on a line of stderr that goes away when the work ends.

use super::printable;
use catena_rpc::Job;
use catena_types::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

/// Bytes for which the bar moves by one where nobody knows how many there are.
const STEP: u64 = 64 << 20;

/// A progress line; invisible unless somebody looks. It vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line that is drawn if `visible`.
    pub(crate) fn new(visible: bool) -> Self {
        let bar = if visible { ProgressBar::new(100) } else { ProgressBar::hidden() };
        // The template is a constant; the default style is as good an answer to a mistake in it.
        let style =
            ProgressStyle::with_template("[{bar:24}] {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        Self { bar }
    }

    /// Draws how far `job` is.
    pub(crate) fn show(&self, job: &Job) {
        match percent(job) {
            Some(percent) => self.bar.set_position(percent),
            // Without an end to come nearer to, something that moves.
            None => self.bar.set_position(job.bytes_done.0 / STEP % 100),
        }
        self.bar.set_message(describe(job));
    }

    /// Draws a text without a job.
    pub(crate) fn note(&self, text: &str) {
        self.bar.set_message(printable(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How much of the job's bytes is done, 0 to 100; `None` while their number is unknown.
pub(crate) fn percent(job: &Job) -> Option<u64> {
    let (done, total) = (u128::from(job.bytes_done.0), u128::from(job.bytes_total.0));
    if total == 0 {
        return None;
    }
    u64::try_from((done * 100 / total).min(100)).ok()
}

/// `copying 43 %, 430.0 MiB of 1000.0 MiB, 85.0 MiB/s, 7 s left`; parts that are unknown are left out.
pub(crate) fn describe(job: &Job) -> String {
    let mut parts = vec![printable(&job.phase)];
    if let Some(percent) = percent(job) {
        parts[0].push_str(&format!(" {percent} %"));
        parts.push(format!("{} of {}", job.bytes_done, job.bytes_total));
    } else if job.bytes_done != Bytes(0) {
        // A pipe does not tell how much it will bring.
        parts.push(job.bytes_done.to_string());
    }
    if job.rate != Bytes(0) {
        parts.push(format!("{}/s", job.rate));
    }
    if let Some(seconds) = job.eta_seconds {
        parts.push(format!("{} left", duration(seconds)));
    }
    parts.join(", ")
}

/// `45 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A bar of text for tables: `[=====>    ] 43 %`.
pub(crate) fn text_bar(percent: u64) -> String {
    let filled = usize::try_from(percent.min(100) / 10).unwrap_or(10);
    let head = if filled < 10 { ">" } else { "" };
    format!("[{:10}] {percent} %", format!("{}{head}", "=".repeat(filled)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A running import, `done` of `total` bytes.
    pub(crate) fn job(done: u64, total: u64) -> Job {
        serde_json::from_value(json!({
            "id": "12345678-1", "kind": "import", "sr": "12345678-0000-4000-8000-0000000000aa", "phase": "copying",
            "bytes_done": done, "bytes_total": total, "rate": 0, "eta_seconds": null, "state": "running", "error": null,
            "created": "2030-01-01T00:00:00Z", "updated": "2030-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_job_is_described_by_what_is_known() {
        assert_eq!(describe(&job(0, 0)), "copying");
        assert_eq!(describe(&job(430 << 20, 0)), "copying, 430.0 MiB");
        let mut busy = job(430 << 20, 1000 << 20);
        busy.rate = Bytes(85 << 20);
        busy.eta_seconds = Some(7);
        assert_eq!(describe(&busy), "copying 43 %, 430.0 MiB of 1000.0 MiB, 85.0 MiB/s, 7 s left");
        assert_eq!(percent(&job(u64::MAX, u64::MAX)), Some(100));
        assert_eq!(percent(&job(3, 2)), Some(100));
    }

    #[test]
    fn durations_and_bars_are_short() {
        assert_eq!([0, 59, 200, 7500].map(duration), ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]);
        assert_eq!(
            [0, 43, 100].map(text_bar),
            ["[>         ] 0 %", "[====>     ] 43 %", "[==========] 100 %"]
        );
    }
}

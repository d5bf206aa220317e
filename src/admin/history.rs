//! `/history`: the samples of the last hour, in JSON, for the charts of the status page.

use http::StatusCode;
use serde_json::json;

use super::{Page, json as json_page, text};
use crate::gateway::Gateway;
use crate::telemetry::history::SAMPLE_INTERVAL;

pub(super) fn page(gateway: &Gateway, query: &str) -> Page {
    match after(query) {
        Ok(number) => {
            let (samples, now) = gateway.observer().samples_after(number);
            let interval = SAMPLE_INTERVAL.as_secs();
            let history = json!({ "interval_seconds": interval, "now_seconds": now, "samples": samples });
            json_page(StatusCode::OK, &history)
        }
        Err(message) => text(StatusCode::BAD_REQUEST, message),
    }
}

/// The number of the sample after which samples are wanted.
fn after(query: &str) -> Result<u32, String> {
    let mut after = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (name.as_ref(), value.parse().ok(), after) {
            ("after", Some(given), None) => after = Some(given),
            _ => {
                let name = name.escape_debug();
                return Err(format!("{name} = {value:?} is not allowed: expected after once, with a sample's number"));
            }
        }
    }
    Ok(after.unwrap_or(0))
}

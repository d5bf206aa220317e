//! The values of `[fleet]`: their forms, and what errors say is allowed.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{Size, Span, written_as_text};

/// The name of a fleet, which is a part of the names of its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetName(pub String);

written_as_text!(
    FleetName,
    "1 to 32 of A-Z a-z 0-9 _ -",
    |text| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        ((1..=32).contains(&text.len()) && text.bytes().all(is_plain)).then(|| FleetName(text.to_owned()))
    },
    |name| name.0.clone()
);

/// The gateway waits no longer for a second tier.
const MAX_BUDGET: Duration = Duration::from_millis(8);

/// Larger values make the engine slow for everybody.
const LARGEST_BODY: Size = Size(8 << 20);

/// `fleet.budget`: how long a request waits for the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LookUpBudget(pub Duration);

written_as_text!(
    LookUpBudget,
    "a duration from 1ms to 8ms, such as \"5ms\"",
    |text| text.parse::<Span>().ok().filter(|span| span.0 <= MAX_BUDGET).map(|span| LookUpBudget(span.0)),
    |budget| Span(budget.0).to_string()
);

/// More polls than this asks for would burden the engine. With a longer time, denials at other gateways come too late.
const SYNC_TIMES: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(10);

/// `fleet.sync`: after so long without the log, a gateway does not rely on what others have proved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SyncTime(pub Duration);

written_as_text!(
    SyncTime,
    "a duration from 200ms to 10s, such as \"1s\"",
    |text| text.parse::<Span>().ok().filter(|span| SYNC_TIMES.contains(&span.0)).map(|span| SyncTime(span.0)),
    |sync| Span(sync.0).to_string()
);

/// `fleet.max_body_size`: the largest body that is stored in the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SharedSize(pub Size);

written_as_text!(
    SharedSize,
    "a size from 1B to 8MiB, such as \"1MiB\"",
    |text| text.parse::<Size>().ok().filter(|size| size.0 <= LARGEST_BODY.0).map(SharedSize),
    |size| size.0.to_string()
);

//! Re-exports for the tests and benches of this project, under the internal module names. Not a stable API.

#![allow(missing_docs)]

pub mod admin {
    pub use crate::admin::{admit, read_query};
}
pub mod budget {
    pub use crate::budget::{Account, Budget, Charge, DEFAULT, Purpose};
}
pub mod cache {
    pub mod miss {
        pub use crate::cache::miss::Miss;
    }
    pub mod response {
        pub use crate::cache::admission::{Audience, VaryRole, Verdict, classify, has_error_code};
        pub use crate::cache::backoffs::{retry_after, unbounded_retry_after};
        pub use crate::cache::body::check;
        pub use crate::cache::freshness::Lifetime;
        pub use crate::cache::lifetime::{ResponseTimes, age, forbids_storing, freshness_info};
    }
    pub mod second_tier {
        pub use crate::cache::second_tier::{
            Incarnation, Lease, LeaseState, LogReader, LookUp, LookedUp, Name, NewRecord, Notice, NoticeKind, Order,
            Place, RecordKind, SecondTier, Ticket, Unread,
        };
    }
    pub mod divergence {
        pub use crate::cache::divergence::Observation;
    }
    pub mod staleness {
        pub use crate::cache::staleness::{AnswerCounters, Answers, StaleAnswers, Staleness};
    }
    pub mod store {
        pub use crate::cache::store::{CacheKey, PurgeSelection};
    }
    pub mod unstorable {
        pub use crate::cache::unstorable::Unstorable;
    }
}
pub mod catalogue {
    pub use crate::catalogue::error_code::is_services_own;
    pub use crate::catalogue::{
        AdaptiveTtl, BodyCheck, Catalogue, Forwarded, Operation, Origin, Quota, QuotaPolicy, Service, Sharing,
    };
}
pub mod clock {
    pub use crate::clock::{Clock, ManualClock};
}
pub mod config {
    pub use crate::config::{Config, ConfigError, Mode, Override, REFERENCE, SettingsDiff};
    pub mod keep_warm {
        pub use crate::config::keep_warm::{KeepWarm, MAX_KEPT_WARM, calls_per_minute, interval};
    }
    pub mod quota {
        pub use crate::catalogue::ConfiguredQuota;
    }
    pub mod table {
        pub use crate::config::table::{Applies, Setting};
    }
}
pub mod machine {
    pub use crate::machine::Machine;
}
pub mod net {
    pub use crate::net::{Connecting, Network, SimulatedListener, SimulatedNetwork, SimulatedStream};
}
pub mod proxy_config {
    pub use crate::proxy_config::ProxyConfig;
}
pub mod fast_path {
    pub use crate::fast_path::{
        HeadScanner, MAX_HEADS, Responder, ResponderState, is_repeatable, split_head, split_parsed_head,
    };
}
pub mod fleet {
    pub use crate::fleet::fuzz::{LogFollower, counted, done, is_master, known, look_up, moved, told};
    pub use crate::fleet::{RELEASE, RENEW, STORE, TELL};
}
pub mod gateway {
    pub use crate::gateway::{Connection, Gateway, Hint, HintSink, REQUEST_IDS};
    pub mod snapshot {
        pub use crate::gateway::snapshot::fuzz::{RecordReader, encoded_again, trial_encoded_again};
    }
}
pub mod otlp {
    pub use crate::otlp::{find_bytes, find_number};
}
pub mod random {
    pub use crate::random::{Random, fix_hash_seeds};
}
pub mod request {
    pub use crate::request::BypassReason;
    pub mod caller {
        pub use crate::request::caller::{Caller, Callers, X_AUTH_TOKEN, token};
    }
    pub mod precondition {
        pub use crate::request::precondition::{Validator, is_current};
    }
    pub mod directives {
        pub use crate::request::directives::Directives;
    }
    pub mod fingerprint {
        pub use crate::request::fingerprint::Fingerprints;
    }
    pub mod forwarded {
        pub use crate::request::forwarded::select;
    }
    pub mod hop {
        pub use crate::request::hop::{Via, strip, strip_request};
    }
    pub mod id {
        pub use crate::request::id::RequestIds;
    }
    pub mod key {
        pub use crate::request::key::{RequestKey, Scope};
    }
    pub mod query {
        pub use crate::request::query::canonical;
    }
    pub mod route {
        pub use crate::request::route::{Route, find, project};
    }
    pub mod target {
        pub use crate::request::target::{check, rebased, translate};
    }
    pub mod trailers {
        pub use crate::request::trailers::Trimmed;
    }
    pub mod trace {
        pub use crate::request::trace::TraceContext;
    }
    pub mod validate {
        pub use crate::request::validate::{Invalid, MAX_FIELDS, MAX_MEMBERS, MAX_PARAMETERS, check, normalize};
    }
    pub mod request_directives {
        pub use crate::request::request_directives::RequestDirectives;
    }
}
pub mod seal {
    pub use crate::seal::{OVERHEAD, Sealer, Unreadable};
}
pub mod server {
    pub use crate::server::{FrameEvent, Frames, Inherited, NAMES, ReloadError, Server, raise_open_files};
}
pub mod signing {
    pub use crate::signing::{
        AccessKey, Authorization, Binding, Payload, Projects, RelayChanges, RepeatedRequest, SCHEME, SignedTarget,
        X_PROJECT_ID, canonical_request, has_signature, parse_date, show_date, string_to_sign,
    };
    pub mod ring {
        pub use crate::signing::ring::{KeyRing, SignatureRejection, VerifiedRequest};
    }
}
pub mod simulator {
    pub use crate::simulator::{
        ChangeUnit, Changes, DebugHeaders, EnforcedQuota, History, IssuedKey, QuotaAnswers, QuotaCall, QuotaRecord,
        QuotaResult, QuotaState, QuotaVerdict, QuotaWindow, Quotas, RecordedCall, RefusalText, Simulator,
    };
}
pub mod snapshot {
    pub use crate::snapshot::{SnapshotFile, SnapshotReader, SnapshotWriter};
}
pub mod stream {
    pub use crate::stream::{BoxError, StreamBody, nothing, stream};
}
pub mod sync {
    pub use crate::sync::Workers;
}
pub mod telemetry {
    pub mod conditions {
        pub use crate::telemetry::conditions::Cause;
    }
    pub mod logs {
        pub use crate::telemetry::logs::{LogGuard, begin, begin_to, is_stalled};
    }
    pub mod events {
        pub use crate::telemetry::events::Event;
    }
    pub mod outcome {
        pub use crate::telemetry::outcome::Outcome;
    }
}
pub mod upstream {
    pub use crate::upstream::{
        Authorities, CallerRefusal, Failure, Fault, PendingResponse, Upstream, UpstreamError, UpstreamResponse,
        connect_status,
    };
    pub mod quota {
        pub use crate::upstream::quota::told::{ToldLimit, told_limits};
    }
    pub mod client {
        pub use crate::upstream::client::{CallLimits, FetchContext, HttpClient};
    }
}

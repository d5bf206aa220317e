//! Parses the gateway's `Cache-Status` (RFC 9211).

use std::fmt;

use http::HeaderMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CacheStatus {
    pub(crate) hit: bool,
    /// `fwd`: reason the request was forwarded.
    pub(crate) forwarded: Option<String>,
    /// `fwd-status`: upstream's status.
    pub(crate) status: Option<u16>,
    pub(crate) stored: bool,
    pub(crate) collapsed: bool,
    /// In seconds. Negative if the entry is stale.
    pub(crate) ttl: Option<i64>,
    pub(crate) detail: Option<String>,
}

/// Where a response comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    /// A fresh entry.
    Fresh,
    /// A fresh entry, after a wait for a call that proved the caller.
    AfterProof,
    /// A fresh entry that another gateway has stored in the fleet's engine, or a caller that it has proved.
    Fleet,
    /// A remembered 401 or 403.
    Denial,
    /// A stored 400, 404 or 405.
    Negative,
    /// A stale entry, which is revalidated in the background.
    Revalidating,
    /// A stale entry, during a backoff.
    Backoff,
    /// A stale entry, because upstream is slow.
    StaleIfSlow,
    /// A stale entry, because upstream has failed.
    Failure,
    /// This request's own fetch.
    Upstream,
    /// Another request's fetch.
    Collapsed,
    /// Relayed as a stream.
    Relayed,
    /// Not stated.
    Unknown,
}

impl Source {
    /// Whether a list from there was in the gateway's memory or in the engine.
    pub(crate) fn is_memory(self) -> bool {
        match self {
            Self::Fresh
            | Self::AfterProof
            | Self::Fleet
            | Self::Denial
            | Self::Negative
            | Self::Revalidating
            | Self::Backoff
            | Self::StaleIfSlow
            | Self::Failure => true,
            Self::Upstream | Self::Collapsed | Self::Relayed | Self::Unknown => false,
        }
    }
}

impl CacheStatus {
    /// Empty if the header has no member of the gateway.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut parsed = Self::default();
        let mut lines = headers.get_all("cache-status").iter().filter_map(|line| line.to_str().ok());
        let Some(line) = lines.rfind(|line| line.starts_with("workspace-gateway")) else { return parsed };
        for part in line.split("; ").skip(1) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "hit" => parsed.hit = true,
                "fwd" => parsed.forwarded = Some(value.to_owned()),
                "fwd-status" => parsed.status = value.parse().ok(),
                "stored" => parsed.stored = true,
                "collapsed" => parsed.collapsed = true,
                "ttl" => parsed.ttl = value.parse().ok(),
                "detail" => parsed.detail = Some(value.to_owned()),
                _ => {}
            }
        }
        parsed
    }

    /// `is_list`: the response is a 200 or a 304.
    pub(crate) fn source(&self, is_list: bool) -> Source {
        let detail = self.detail.as_deref();
        match (self.hit, self.forwarded.as_deref()) {
            (true, _) => match detail {
                None => Source::Fresh,
                Some("coalesced") => Source::AfterProof,
                Some("fleet") => Source::Fleet,
                Some("denied") => Source::Denial,
                Some("negative") => Source::Negative,
                Some("revalidating") => Source::Revalidating,
                Some("backoff") => Source::Backoff,
                Some(_) => Source::Unknown,
            },
            (false, None) => Source::Unknown,
            (false, Some("bypass")) => Source::Relayed,
            (false, Some(_)) if detail == Some("stale-if-slow") => Source::StaleIfSlow,
            (false, Some(_)) if is_list && !matches!(self.status, Some(200 | 304)) => Source::Failure,
            (false, Some(_)) if self.collapsed => Source::Collapsed,
            (false, Some(_)) => Source::Upstream,
        }
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hit { "hit" } else { "" })?;
        if let Some(reason) = &self.forwarded {
            write!(f, "fwd={reason}")?;
        }
        if let Some(status) = self.status {
            write!(f, "; fwd-status={status}")?;
        }
        f.write_str(if self.stored { "; stored" } else { "" })?;
        f.write_str(if self.collapsed { "; collapsed" } else { "" })?;
        match &self.detail {
            Some(detail) => write!(f, "; detail={detail}"),
            None => Ok(()),
        }
    }
}

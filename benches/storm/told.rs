//! What the gateway says of an answer, in its `Cache-Status`.

use std::fmt;

use http::HeaderMap;

/// The gateway's part of `Cache-Status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) hit: bool,
    /// Why upstream was asked.
    pub(crate) forwarded: Option<String>,
    /// What upstream said.
    pub(crate) status: Option<u16>,
    pub(crate) stored: bool,
    pub(crate) collapsed: bool,
    pub(crate) detail: Option<String>,
}

/// Where an answer is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    /// Fresh, from memory.
    Fresh,
    /// A refusal, from memory.
    Refusal,
    /// A negative answer, from memory.
    Negative,
    /// Stale, while it is asked for in the background.
    Revalidating,
    /// Stale, while upstream is left alone after a failure.
    Backoff,
    /// Stale, because upstream takes long.
    StaleIfSlow,
    /// Stale, because upstream has failed.
    Failure,
    /// From upstream, asked for this request alone or for it and others.
    Upstream,
    /// The same, asked for another request.
    Another,
    /// From upstream, and passed on as it came.
    Relayed,
    /// It doesn't say.
    Unsaid,
}

impl Told {
    /// Reads what the gateway has said, if it has.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut told = Self::default();
        let mut lines = headers.get_all("cache-status").iter().filter_map(|line| line.to_str().ok());
        let Some(line) = lines.rfind(|line| line.starts_with("workspace-gateway")) else { return told };
        for part in line.split("; ").skip(1) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "hit" => told.hit = true,
                "fwd" => told.forwarded = Some(value.to_owned()),
                "fwd-status" => told.status = value.parse().ok(),
                "stored" => told.stored = true,
                "collapsed" => told.collapsed = true,
                "detail" => told.detail = Some(value.to_owned()),
                _ => {}
            }
        }
        told
    }

    /// Where an answer is from; `is_list` if it shows a product list, or that the client has it already.
    pub(crate) fn source(&self, is_list: bool) -> Source {
        let detail = self.detail.as_deref();
        match (self.hit, self.forwarded.as_deref()) {
            (true, _) => match detail {
                None => Source::Fresh,
                Some("denied") => Source::Refusal,
                Some("negative") => Source::Negative,
                Some("revalidating") => Source::Revalidating,
                Some("backoff") => Source::Backoff,
                Some(_) => Source::Unsaid,
            },
            (false, None) => Source::Unsaid,
            (false, Some("bypass")) => Source::Relayed,
            (false, Some(_)) if detail == Some("stale-if-slow") => Source::StaleIfSlow,
            (false, Some(_)) if is_list && !matches!(self.status, Some(200 | 304)) => Source::Failure,
            (false, Some(_)) if self.collapsed => Source::Another,
            (false, Some(_)) => Source::Upstream,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hit { "hit" } else { "" })?;
        if let Some(why) = &self.forwarded {
            write!(f, "fwd={why}")?;
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

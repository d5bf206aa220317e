//! The reasons for a cache miss. Each is one word, used as metric label, log field and `Cache-Status` detail.

use strum::{IntoStaticStr, VariantArray};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Miss {
    NoEntry,
    /// The entry has expired, or upstream has sent a 400, 404 or 405 since.
    Expired,
    /// An unsafe method has invalidated the entry, so upstream must validate it first.
    NeedsConfirmation,
    /// The caller has no grant, so its own call must prove it first. This reason hides from the caller whether there is
    /// an entry.
    NoGrant,
    /// The caller's grant has lapsed, so its own call must prove it again. This reason hides whether there is an entry,
    /// too.
    GrantLapsed,
    /// The scope is private, and there is no entry for this caller.
    Private,
    /// There is no entry, because a recent response to this request could not be stored.
    Uncacheable,
    /// The client accepts no stored response: `no-cache`, `max-age=0`, or directives that cannot be parsed.
    ClientNoCache,
    /// The entry is older than the client's `max-age`.
    ClientMaxAge,
    /// The entry stays fresh for less than the client's `min-fresh`.
    ClientMinFresh,
}

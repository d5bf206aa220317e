//! Why a request is not answered from memory at once. One word each, used alike as metric label, log field and
//! `Cache-Status` detail.

use strum::{IntoStaticStr, VariantArray};

/// Why upstream has to be asked before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Miss {
    /// Nothing is stored.
    NoEntry,
    /// What is stored has expired, or upstream's latest word is another.
    Expired,
    /// What is stored may be given only after upstream has confirmed it: an unsafe method has invalidated it.
    NeedsConfirmation,
    /// The caller has no grant: its own proof comes first. This is the reason whatever is stored, so that it tells such a
    /// caller nothing of that.
    NoGrant,
    /// The caller's grant has lapsed: it has to be proved again. Likewise, whatever is stored.
    GrantLapsed,
    /// Callers share nothing here, and nothing is stored for this one.
    Private,
    /// Nothing is stored, for an answer to this question could not be stored just before.
    Uncacheable,
    /// The client takes nothing from memory: `no-cache`, `max-age=0`, or directives that can't be read.
    ClientNoCache,
    /// What is stored is older than the client's `max-age`.
    ClientMaxAge,
    /// What is stored stays fresh for less than the client's `min-fresh`.
    ClientMinFresh,
}

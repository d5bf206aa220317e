//! Why a request is not answered from memory at once. One word each, used alike as metric label, log field and
//! `Cache-Status` detail.

words! {
    /// Why upstream has to be asked before a request is answered.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Miss {
        /// Nothing is stored.
        NoEntry = "no-entry",
        /// What is stored has expired, or upstream's latest word is another.
        Expired = "expired",
        /// What is stored may be given only after upstream has confirmed it: an unsafe method has invalidated it.
        NeedsConfirmation = "needs-confirmation",
        /// The caller has no grant: its own proof comes first. This is the reason whatever is stored, so that it tells such a
        /// caller nothing of that.
        NoGrant = "no-grant",
        /// The caller's grant has lapsed: it has to be proved again. Likewise, whatever is stored.
        GrantLapsed = "grant-lapsed",
        /// Callers share nothing here, and nothing is stored for this one.
        Private = "private",
        /// Nothing is stored, for an answer to this question could not be stored just before.
        Uncacheable = "uncacheable",
        /// The client takes nothing from memory: `no-cache`, `max-age=0`, or directives that can't be read.
        ClientNoCache = "client-no-cache",
        /// What is stored is older than the client's `max-age`.
        ClientMaxAge = "client-max-age",
        /// What is stored stays fresh for less than the client's `min-fresh`.
        ClientMinFresh = "client-min-fresh",
    }
}

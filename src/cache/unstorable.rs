//! Why answers are not stored.

words! {
    /// Why an answer is not stored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Unstorable {
        /// Not a 200, and no refusal of the credential.
        Status = "status",
        /// A 200 that is not JSON, or no JSON object where a field is asked for.
        NotJson = "not-json",
        /// JSON, but no product list, or what else the operation's body check asks for.
        NotProducts = "not-products",
        /// `Cache-Control` or `Pragma` forbids it, or can't be read.
        CacheDirectives = "cache-directives",
        /// It varies on more than the key fixes.
        Vary = "vary",
        /// An `Age` that is not a number of seconds.
        BadAge = "bad-age",
        /// Too large to hold.
        TooLarge = "too-large",
        /// The memory budget has no room for it.
        Memory = "memory",
        /// A 401 or 403.
        Denied = "denied",
        /// The credential was refused while the answer was on its way.
        Late = "late",
        /// What is stored was asked for no earlier.
        Outdated = "outdated",
        /// There was a purge since it was asked for.
        Purged = "purged",
        /// Its scope was invalidated since it was asked for.
        Invalidated = "invalidated",
    }
}

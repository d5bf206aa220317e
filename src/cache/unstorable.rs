//! The reasons not to store a response. Each is one word, for metrics and logs.

use strum::{IntoStaticStr, VariantArray};

#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Unstorable {
    /// The status is neither 200 nor 401 nor 403.
    Status,
    /// The body of a 200 is not JSON, or it is not an object although the operation requires a field.
    NotJson,
    /// The body of a 200 is JSON, but it fails the body check of its operation. It is not a product list, for example.
    NotProducts,
    /// `Cache-Control` or `Pragma` forbids it, or cannot be parsed.
    CacheDirectives,
    /// The response varies on a header that is not part of the key.
    Vary,
    /// `Age` is not a number of seconds.
    BadAge,
    /// The body is larger than the limit.
    TooLarge,
    /// The memory budget has no room for it.
    Memory,
    /// A 401 or 403.
    Denied,
    /// Upstream refused the credential after the request had been sent.
    Late,
    /// The request of the stored response was sent later, or at the same time.
    Outdated,
    /// A purge ran after the request had been sent.
    Purged,
    /// The scope was invalidated after the request had been sent.
    Invalidated,
}

impl Unstorable {
    /// Whether something that happened after the request had been sent is the reason, and not the response itself.
    pub(crate) fn is_overtaken(self) -> bool {
        matches!(self, Self::Late | Self::Outdated | Self::Purged | Self::Invalidated)
    }
}

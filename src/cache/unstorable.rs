//! Why answers are not stored.

use strum::{IntoStaticStr, VariantArray};

/// Why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Unstorable {
    /// Not a 200, and no refusal of the credential.
    Status,
    /// A 200 that is not JSON, or no JSON object where a field is asked for.
    NotJson,
    /// JSON, but no product list, or what else the operation's body check asks for.
    NotProducts,
    /// `Cache-Control` or `Pragma` forbids it, or can't be read.
    CacheDirectives,
    /// It varies on more than the key fixes.
    Vary,
    /// An `Age` that is not a number of seconds.
    BadAge,
    /// Too large to hold.
    TooLarge,
    /// The memory budget has no room for it.
    Memory,
    /// A 401 or 403.
    Denied,
    /// The credential was refused while the answer was on its way.
    Late,
    /// What is stored was asked for no earlier.
    Outdated,
    /// There was a purge since it was asked for.
    Purged,
    /// Its scope was invalidated since it was asked for.
    Invalidated,
}

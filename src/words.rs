//! Enums whose values are words: of settings, metric labels, log fields and reasons. Each word stands beside its value, and
//! the list of all values cannot lack one.

/// Defines enums with `ALL`, every value in order, and `as_str`, the word of each.
macro_rules! words {
    ($($(#[$about:meta])* $vis:vis enum $name:ident {
        $($(#[$meaning:meta])* $value:ident = $word:literal,)*
    })*) => {$(
        $(#[$about])*
        $vis enum $name {
            $($(#[$meaning])* $value,)*
        }

        impl $name {
            /// All of them, in order.
            $vis const ALL: [Self; [$($word),*].len()] = [$(Self::$value),*];

            /// The word used alike in settings, metric labels and log fields.
            $vis fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)*
                }
            }
        }
    )*};
}

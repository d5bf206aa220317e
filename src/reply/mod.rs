//! Composing responses from entries, from upstream's responses, and from errors. Nothing here decides who gets what.

pub(crate) mod body;
pub(crate) mod compose;
pub(crate) mod error;

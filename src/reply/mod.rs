//! Answering: responses made of entries, of upstream's answers, or of what went wrong.

pub(crate) mod body;
pub(crate) mod compose;
pub(crate) mod error;

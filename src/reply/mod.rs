//! Answering: responses made of entries, of upstream's answers, or of what went wrong.

pub mod body;
pub mod compose;
pub mod error;

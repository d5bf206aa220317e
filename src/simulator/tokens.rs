//! Who may ask: tokens as they are issued, expire, are revoked or denied.

use std::collections::HashMap;

use http::HeaderMap;

use super::errors::{self, ErrorReply};
use crate::request::caller::X_AUTH_TOKEN;

/// About as long as the tokens of an ordinary account.
pub(super) const USUAL_LENGTH: usize = 4_800;

/// What tokens are written in: 64 characters, so that a random byte picks each as likely.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+";

/// What a token or an access key is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum TokenState {
    Valid,
    Expired,
    Revoked,
    Denied,
}

/// Whoever has a good credential.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bearer {
    pub(super) project_id: String,
    /// Whether less is shown than others are shown.
    pub(super) narrow_view: bool,
}

impl Bearer {
    /// Someone of a project, to whom everything is shown.
    pub(super) fn of(project_id: &str) -> Self {
        Self { project_id: project_id.to_owned(), narrow_view: false }
    }
}

/// What is known about a token.
struct Token {
    bearer: Bearer,
    standing: TokenState,
}

/// All tokens issued.
pub(super) struct Tokens {
    seed: [u8; 32],
    issued: u64,
    known: HashMap<String, Token>,
}

impl Tokens {
    /// With a random seed, so that the token of one simulator means nothing to another.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, issued: 0, known: HashMap::new() }
    }

    pub(super) fn issue(&mut self, project_id: &str, length: usize) -> String {
        self.issued += 1;
        let mut bytes = vec![0; length];
        blake3::Hasher::new_keyed(&self.seed).update(&self.issued.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect();
        let token = Token { bearer: Bearer::of(project_id), standing: TokenState::Valid };
        self.known.insert(text.clone(), token);
        text
    }

    /// Changes what a token is worth. One that was never issued stays worthless.
    pub(super) fn judge(&mut self, token: &str, standing: TokenState) {
        if let Some(token) = self.known.get_mut(token) {
            token.standing = standing;
        }
    }

    pub(super) fn narrow_view(&mut self, token: &str) {
        if let Some(token) = self.known.get_mut(token) {
            token.bearer.narrow_view = true;
        }
    }

    /// Whoever a token was issued to, be it good or not.
    pub(super) fn known(&self, token: &str) -> Option<Bearer> {
        self.known.get(token).map(|token| token.bearer.clone())
    }

    /// Whoever presents a request's token, if that is good.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Bearer, ErrorReply> {
        let text = headers.get(X_AUTH_TOKEN).filter(|value| !value.is_empty()).ok_or(errors::NO_TOKEN)?;
        let known = text.to_str().ok().and_then(|text| self.known.get(text)).ok_or(errors::UNKNOWN_TOKEN)?;
        match known.standing {
            TokenState::Valid => Ok(known.bearer.clone()),
            TokenState::Expired => Err(errors::EXPIRED_TOKEN),
            TokenState::Revoked => Err(errors::REVOKED_TOKEN),
            TokenState::Denied => Err(errors::DENIED),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn presenting(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(X_AUTH_TOKEN, HeaderValue::from_str(token).unwrap())])
    }

    #[test]
    fn tokens_are_long_unique_and_known() {
        let mut tokens = Tokens::new([7; 32]);
        let (one, two) = (tokens.issue("p", USUAL_LENGTH), tokens.issue("p", USUAL_LENGTH));
        assert_ne!(one, two);
        assert_eq!(one.len(), USUAL_LENGTH);
        assert_eq!(tokens.check(&presenting(&one)).unwrap().project_id, "p");
        assert_eq!(tokens.check(&presenting(&one[1..])), Err(errors::UNKNOWN_TOKEN));
    }

    #[test]
    fn each_standing_has_its_answer_and_can_be_taken_back() {
        let mut tokens = Tokens::new([7; 32]);
        let token = tokens.issue("p", 100);
        for (standing, refusal) in [
            (TokenState::Expired, errors::EXPIRED_TOKEN),
            (TokenState::Revoked, errors::REVOKED_TOKEN),
            (TokenState::Denied, errors::DENIED),
        ] {
            tokens.judge(&token, standing);
            assert_eq!(tokens.check(&presenting(&token)), Err(refusal));
        }
        tokens.judge(&token, TokenState::Valid);
        assert!(tokens.check(&presenting(&token)).is_ok());
        tokens.judge("never issued", TokenState::Valid);
        assert_eq!(tokens.check(&presenting("never issued")), Err(errors::UNKNOWN_TOKEN));
    }

    #[test]
    fn a_blank_token_is_none() {
        let tokens = Tokens::new([7; 32]);
        assert_eq!(tokens.check(&HeaderMap::new()), Err(errors::NO_TOKEN));
        assert_eq!(tokens.check(&presenting("")), Err(errors::NO_TOKEN));
    }
}

//! Who may ask: tokens as they are issued, expire, are revoked or denied.

use std::collections::HashMap;

use http::HeaderMap;

use super::errors::{self, Refusal};
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::has_signature;

/// About as long as the tokens of an ordinary account.
pub(super) const USUAL_LENGTH: usize = 4_800;

/// What tokens are written in: 64 characters, so that a random byte picks each as likely.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+";

/// What a token is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Standing {
    Valid,
    Expired,
    Revoked,
    Denied,
}

/// What is known about a token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) project_id: String,
    /// Whether its bearer is shown less than others are.
    pub(super) narrow_view: bool,
    standing: Standing,
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
        let token = Token { project_id: project_id.to_owned(), narrow_view: false, standing: Standing::Valid };
        self.known.insert(text.clone(), token);
        text
    }

    /// Changes what a token is worth. One that was never issued stays worthless.
    pub(super) fn judge(&mut self, token: &str, standing: Standing) {
        if let Some(token) = self.known.get_mut(token) {
            token.standing = standing;
        }
    }

    pub(super) fn narrow_view(&mut self, token: &str) {
        if let Some(token) = self.known.get_mut(token) {
            token.narrow_view = true;
        }
    }

    /// A token that was issued, good or not.
    pub(super) fn known(&self, token: &str) -> Option<Token> {
        self.known.get(token).cloned()
    }

    /// The token of a request, if it is good.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Token, Refusal> {
        let text = headers.get(X_AUTH_TOKEN).filter(|value| !value.is_empty());
        let Some(text) = text else {
            return Err(if has_signature(headers) { errors::BAD_SIGNATURE } else { errors::NO_TOKEN });
        };
        let known = text.to_str().ok().and_then(|text| self.known.get(text)).ok_or(errors::UNKNOWN_TOKEN)?;
        match known.standing {
            Standing::Valid => Ok(known.clone()),
            Standing::Expired => Err(errors::EXPIRED_TOKEN),
            Standing::Revoked => Err(errors::REVOKED_TOKEN),
            Standing::Denied => Err(errors::DENIED),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::AUTHORIZATION;

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
            (Standing::Expired, errors::EXPIRED_TOKEN),
            (Standing::Revoked, errors::REVOKED_TOKEN),
            (Standing::Denied, errors::DENIED),
        ] {
            tokens.judge(&token, standing);
            assert_eq!(tokens.check(&presenting(&token)), Err(refusal));
        }
        tokens.judge(&token, Standing::Valid);
        assert!(tokens.check(&presenting(&token)).is_ok());
        tokens.judge("never issued", Standing::Valid);
        assert_eq!(tokens.check(&presenting("never issued")), Err(errors::UNKNOWN_TOKEN));
    }

    #[test]
    fn without_a_token_there_is_nothing_else_that_counts() {
        let tokens = Tokens::new([7; 32]);
        let mut headers = presenting("");
        assert_eq!(tokens.check(&HeaderMap::new()), Err(errors::NO_TOKEN));
        assert_eq!(tokens.check(&headers), Err(errors::NO_TOKEN));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("SDK-HMAC-SHA256 Access=a, Signature=b"));
        assert_eq!(tokens.check(&headers), Err(errors::BAD_SIGNATURE));
    }
}

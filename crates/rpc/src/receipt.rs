//! Signed receipts: what a server says it has computed and charged, for the client and for those to whom
//! the client shows it later.
//!
//! The receipt travels as the bytes that were signed, so that nobody has to encode it again in exactly the
//! same way. It commits to this server's two components of the result: the digest is keyed, with a key that
//! goes to the client beside the receipt and not into it. Without the key a receipt that is shown around
//! would confirm guesses of the components, and components of a label are short.

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    signature::{Authorities, Purpose, SignatureError, Signed, SigningError},
    tls::TlsMaterial,
    v1::{Receipt, SignedReceipt},
};

/// Length of the key of a commitment, in bytes.
pub const RESULT_KEY_BYTES: usize = 32;

/// Stands before what is hashed.
const COMMITMENT_CONTEXT: &[u8] = b"concilium v1 result";

/// A receipt that could not be signed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The key does not sign.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Randomness(String),
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiptError {
    /// There is no signature.
    #[error("it is not signed")]
    Unsigned,
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Another server signed.
    #[error("server {signer} signed it, not server {expected}")]
    OtherServer {
        /// Who was expected.
        expected: u8,
        /// Who signed.
        signer: u8,
    },
    /// What was signed is no receipt.
    #[error("what was signed is no receipt")]
    NoReceipt,
    /// The receipt is about another result.
    #[error("it is the receipt of another result than the one that came with it")]
    OtherResult,
}

/// Signs `receipt` together with this server's components of the result.
///
/// # Errors
/// [`IssueError`].
pub fn issue(
    tls: &TlsMaterial,
    mut receipt: Receipt,
    own: &[u8],
    next: &[u8],
    now_unix_ms: i64,
) -> Result<SignedReceipt, IssueError> {
    let mut key = [0; RESULT_KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| IssueError::Randomness(error.to_string()))?;
    receipt.result_commitment = commitment(&key, own, next).to_vec().into();
    let receipt = Bytes::from(receipt.encode_to_vec());
    let signature = tls.sign(Purpose::Receipt, &receipt, now_unix_ms)?;
    Ok(SignedReceipt { receipt, signature: Some(signature), result_key: key.to_vec().into() })
}

/// Checks who signed a receipt, and reads it.
///
/// # Errors
/// [`ReceiptError::Unsigned`], [`ReceiptError::Signature`] or [`ReceiptError::NoReceipt`].
pub fn read(signed: &SignedReceipt, authorities: &Authorities) -> Result<(Receipt, Signed), ReceiptError> {
    let signature = signed.signature.as_ref().ok_or(ReceiptError::Unsigned)?;
    let signer = authorities.verify(signature, Purpose::Receipt, &signed.receipt)?;
    let receipt = Receipt::decode(&*signed.receipt).map_err(|_| ReceiptError::NoReceipt)?;
    Ok((receipt, signer))
}

/// As [`read`], for a receipt that came with a result: `server` must have signed it, for these components.
///
/// # Errors
/// [`ReceiptError`].
pub fn accept(
    signed: &SignedReceipt,
    authorities: &Authorities,
    server: u8,
    own: &[u8],
    next: &[u8],
) -> Result<Receipt, ReceiptError> {
    let (receipt, signer) = read(signed, authorities)?;
    if signer.server != server {
        return Err(ReceiptError::OtherServer { expected: server, signer: signer.server });
    }
    let key = <[u8; RESULT_KEY_BYTES]>::try_from(&*signed.result_key);
    let committed = key.map(|key| commitment(&key, own, next));
    if committed.is_ok_and(|committed| receipt.result_commitment == committed[..]) {
        Ok(receipt)
    } else {
        Err(ReceiptError::OtherResult)
    }
}

/// SHA-256 of "concilium v1 result", the key, the own and the next component, which have equal length.
fn commitment(key: &[u8; RESULT_KEY_BYTES], own: &[u8], next: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(COMMITMENT_CONTEXT).chain_update(key);
    digest.chain_update(own).chain_update(next).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificates::Authority, identity::Identity};

    const NOW_MS: i64 = 1_800_000_000_000;

    fn server(authority: &Authority, index: u8) -> (TlsMaterial, Authorities) {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::server(index).unwrap();
        let issued = authority.issue_between(&identity, &[], 1_000_000, 2_000_000_000).unwrap();
        let files = issued.save(folder.path()).unwrap();
        (files.load().unwrap(), Authorities::load(&files.ca).unwrap())
    }

    #[test]
    fn a_receipt_holds_for_its_server_and_result_only() {
        let authority = Authority::create().unwrap();
        let (tls, trusted) = server(&authority, 1);
        let receipt = Receipt { task: "digits".into(), models: 7, ..Receipt::default() };
        let signed = issue(&tls, receipt, b"own", b"nxt", NOW_MS).unwrap();
        let accept = |signed: &SignedReceipt, server, own, next| {
            super::accept(signed, &trusted, server, own, next).map(|receipt| receipt.models)
        };
        assert_eq!(accept(&signed, 1, b"own", b"nxt"), Ok(7));
        let other = Err(ReceiptError::OtherServer { expected: 2, signer: 1 });
        assert_eq!(accept(&signed, 2, b"own", b"nxt"), other);
        assert_eq!(accept(&signed, 1, b"nxt", b"own"), Err(ReceiptError::OtherResult));

        let changed = |change: &dyn Fn(&mut SignedReceipt)| {
            let mut copy = signed.clone();
            change(&mut copy);
            accept(&copy, 1, b"own", b"nxt").unwrap_err()
        };
        assert_eq!(changed(&|copy| copy.signature = None), ReceiptError::Unsigned);
        assert_eq!(changed(&|copy| copy.result_key = vec![0; 32].into()), ReceiptError::OtherResult);
        assert_eq!(changed(&|copy| copy.result_key.truncate(31)), ReceiptError::OtherResult);
        let error = changed(&|copy| {
            let mut receipt = Receipt::decode(&*copy.receipt).unwrap();
            receipt.models = 8;
            copy.receipt = receipt.encode_to_vec().into();
        });
        assert!(matches!(error, ReceiptError::Signature(SignatureError::Bytes { .. })), "{error}");
        let garbage = vec![0xff; 9];
        let signature = tls.sign(Purpose::Receipt, &garbage, NOW_MS).unwrap();
        let garbage = SignedReceipt { receipt: garbage.into(), signature: Some(signature), ..signed.clone() };
        assert_eq!(read(&garbage, &trusted).unwrap_err(), ReceiptError::NoReceipt);

        // Two receipts of one result do not tell by their commitments that it is the same.
        let again = issue(&tls, Receipt::default(), b"own", b"nxt", NOW_MS).unwrap();
        let commitments = [&signed, &again].map(|one| read(one, &trusted).unwrap().0.result_commitment);
        assert_ne!(commitments[0], commitments[1]);
    }
}

//! Signed receipts in the JSON file of a prediction, and their check by whoever gets the file.

use std::{fs, io::Write, path::Path};

use concilium_client_library::{
    answer::difference,
    terminal::{Failure, FailureClass, Output},
};
use concilium_privacy::NanoRho;
use concilium_rpc::{
    inspection::utc,
    receipt::read,
    signature::Authorities,
    v1::{Receipt, ServerSignature, SignedReceipt},
};
use serde::{Deserialize, Serialize};

/// One server's receipt as the file holds it. Bytes are in hexadecimal. The key of the commitment to the
/// result is left out: whoever is shown the file shall learn no components from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredReceipt {
    /// The encoded receipt, as it was signed.
    pub receipt: String,
    /// TLS number of the signature's scheme.
    pub scheme: u32,
    /// The signature.
    pub signature: String,
    /// The server's certificate in DER, followed by intermediate ones.
    pub certificates: Vec<String>,
    /// When it was signed, in milliseconds since 1970-01-01 UTC.
    pub signed_unix_ms: i64,
}

impl StoredReceipt {
    /// What a server sent.
    pub fn new(signed: &SignedReceipt) -> Self {
        let signature = signed.signature.clone().unwrap_or_default();
        Self {
            receipt: hex::encode(&signed.receipt),
            scheme: signature.scheme,
            signature: hex::encode(&signature.signature),
            certificates: signature.certificates.iter().map(hex::encode).collect(),
            signed_unix_ms: signature.signed_unix_ms,
        }
    }

    fn decode(&self) -> Result<SignedReceipt, hex::FromHexError> {
        let bytes = |text: &str| hex::decode(text).map(Into::into);
        Ok(SignedReceipt {
            receipt: bytes(&self.receipt)?,
            signature: Some(ServerSignature {
                scheme: self.scheme,
                signature: bytes(&self.signature)?,
                certificates: self.certificates.iter().map(|text| bytes(text)).collect::<Result<_, _>>()?,
                signed_unix_ms: self.signed_unix_ms,
            }),
            result_key: Vec::new().into(),
        })
    }
}

/// What the check reads of the file.
#[derive(Deserialize)]
struct File {
    requests: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    request_id: String,
    rows: u32,
    models: u32,
    owners: u32,
    model_set_digest: String,
    charged_rho: String,
    receipts: Vec<StoredReceipt>,
}

/// Checks the receipts of a file that `predict --json` wrote: that each of the three servers signed one for
/// every request, under an authority in `ca`, that they say the same, and that the file says it too. Prints
/// one line for each request.
///
/// # Errors
/// [`Failure`]: of input if a file cannot be read, of refusal for the first thing that does not hold.
pub fn verify(path: &Path, ca: &Path, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let refused = |problem: String| Failure::message(FailureClass::Input, problem);
    let authorities = Authorities::load(ca).map_err(|error| refused(error.to_string()))?;
    let shown = path.display();
    let text = fs::read(path).map_err(|error| refused(format!("cannot read `{shown}`: {error}")))?;
    let file: File = serde_json::from_slice(&text).map_err(|error| {
        refused(format!("`{shown}` is not what `predict --json` writes, or of another version: {error}"))
    })?;
    if file.requests.is_empty() {
        return Err(refused(format!("`{shown}` holds no request")));
    }
    let header =
        ["request", "client", "task", "epoch", "rows", "rho", "epsilon", "delta", "models", "signed"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for request in &file.requests {
        let (receipt, signed_unix_ms) = check(request, &authorities).map_err(|problem| {
            Failure::message(FailureClass::Refused, format!("request {}: {problem}", request.request_id))
        })?;
        rows.push(vec![
            hex::encode(&receipt.request_id),
            receipt.client,
            receipt.task,
            receipt.epoch.to_string(),
            receipt.rows.to_string(),
            NanoRho::new(receipt.charged_nano_rho).to_string(),
            format!("{:.3}", receipt.charged_epsilon),
            format!("{:e}", receipt.delta),
            receipt.models.to_string(),
            utc(signed_unix_ms / 1000),
        ]);
    }
    output.table(&rows)?;
    output.line(format_args!("OK: {} requests, each with the receipts of three servers", file.requests.len()))
}

/// The receipt of server 0, with which all else agrees, and when it was signed.
fn check(request: &Request, authorities: &Authorities) -> Result<(Receipt, i64), String> {
    let [first, second, third] = request.receipts.as_slice() else {
        return Err(format!("it has {} receipts, not 3", request.receipts.len()));
    };
    let mut receipts = Vec::new();
    for (server, stored) in (0_u8..).zip([first, second, third]) {
        let wrong = |problem: String| format!("the receipt of server {server} does not hold: {problem}");
        let signed = stored.decode().map_err(|error| wrong(error.to_string()))?;
        let (receipt, signer) = read(&signed, authorities).map_err(|error| wrong(error.to_string()))?;
        if signer.server != server {
            return Err(wrong(format!("server {} signed it", signer.server)));
        }
        receipts.push(receipt);
    }
    let reference = receipts.swap_remove(0);
    for (receipt, server) in receipts.iter().zip([2, 1]) {
        if let Some((field, here, there)) = difference(&reference, receipt) {
            return Err(format!("`{field}` is {here} on server 0 but {there} on server {server}"));
        }
    }
    let told = [
        ("request_id", request.request_id.clone(), hex::encode(&reference.request_id)),
        ("rows", request.rows.to_string(), reference.rows.to_string()),
        ("models", request.models.to_string(), reference.models.to_string()),
        ("owners", request.owners.to_string(), reference.owners.to_string()),
        ("model_set_digest", request.model_set_digest.clone(), hex::encode(&reference.model_set_digest)),
        ("charged_rho", request.charged_rho.clone(), NanoRho::new(reference.charged_nano_rho).to_string()),
    ];
    for (field, file, signed) in told {
        if file != signed {
            return Err(format!("the file says `{field}` {file}, and the servers signed {signed}"));
        }
    }
    Ok((reference, first.signed_unix_ms))
}

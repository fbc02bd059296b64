//! Making an authority; issuing, showing and renewing certificates.

mod renew;
mod show;

use std::path::Path;

use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_rpc::{
    certificates::{Authority, AuthorityError},
    identity::Identity,
};

use crate::arguments::IssueArguments;

pub use renew::renew;
pub use show::show;

/// The error as a failure: of this machine for files, of the input otherwise.
fn failure(error: AuthorityError) -> Failure {
    let class = match &error {
        AuthorityError::File { action: "write" | "create", .. } | AuthorityError::Signing { .. } => {
            FailureClass::Local
        }
        _ => FailureClass::Input,
    };
    Failure::new(class, &error)
}

/// Makes a new authority in `folder` and tells what is there.
///
/// # Errors
/// [`Failure`] if the folder holds an authority already or cannot be written.
pub fn init(folder: &Path) -> Result<String, Failure> {
    Authority::create().map_err(failure)?.save(folder).map_err(failure)?;
    let folder = folder.display();
    Ok(format!(
        "made an authority: {folder}/ca.pem (for everybody) and {folder}/ca.key (for nobody else). Whoever has \
         ca.key can pass for all three servers: keep it, and a copy, off any machine that is on a network, and \
         bring it only to issue or renew certificates"
    ))
}

/// Issues a certificate and tells where it is.
///
/// # Errors
/// [`Failure`] if the authority cannot be read, the name, hosts or days are refused, or a file cannot
/// be written.
pub fn issue(arguments: &IssueArguments) -> Result<String, Failure> {
    let identity = Identity::new(arguments.role, &arguments.name)?;
    let authority = Authority::load(&arguments.ca).map_err(failure)?;
    let addresses = arguments.ip.iter().map(ToString::to_string);
    let hosts: Vec<String> = arguments.dns.iter().cloned().chain(addresses).collect();
    let issued = authority.issue(&identity, &hosts, arguments.days).map_err(failure)?;
    let files = issued.save(&arguments.out).map_err(failure)?;
    Ok(format!(
        "issued to {identity} for {} days: {} and {} (secret), with {}",
        arguments.days,
        files.certificate.display(),
        files.key.display(),
        files.ca.display()
    ))
}

#[cfg(test)]
mod tests {
    use concilium_rpc::{identity::Role, tls::TlsFiles};

    use super::*;

    #[test]
    fn issued_files_are_usable() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("authority");
        assert!(init(&ca).unwrap().contains("ca.pem"));
        let failure = init(&ca).unwrap_err();
        assert_eq!(failure.class(), FailureClass::Input, "{failure}");
        let out = folder.path().join("server-1");
        let arguments = IssueArguments {
            ca,
            role: Role::Server,
            name: "server-1".into(),
            dns: vec!["host1.example.org".into()],
            ip: vec!["10.0.0.1".parse().unwrap()],
            days: 2,
            out: out.clone(),
        };
        let told = issue(&arguments).unwrap();
        assert!(told.contains("server `server-1`") && told.contains("server-1.key"), "{told}");
        let files = TlsFiles {
            ca: out.join("ca.pem"),
            certificate: out.join("server-1.pem"),
            key: out.join("server-1.key"),
        };
        assert_eq!(files.load().unwrap().identity().server_index(), Some(1));

        for wrong in [
            IssueArguments { name: "server-3".into(), ..arguments.clone() },
            IssueArguments { role: Role::Client, name: "Alice".into(), ..arguments.clone() },
            IssueArguments { role: Role::Client, name: "alice".into(), ..arguments.clone() },
            IssueArguments { days: 0, ..arguments.clone() },
            IssueArguments { ca: folder.path().join("none"), ..arguments },
        ] {
            let failure = issue(&wrong).unwrap_err();
            assert_eq!(failure.class(), FailureClass::Input, "{failure}");
        }
    }
}

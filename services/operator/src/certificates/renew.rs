//! Renewing a certificate before it ends.

use std::{
    fs,
    path::{Path, PathBuf},
};

use concilium_client_library::terminal::{Failure, FailureClass};
use concilium_rpc::{
    certificates::{AUTHORITY_CERTIFICATE_FILE, Authority},
    identity::Identity,
    inspection::{CertificateInfo, utc},
    tls::TlsFiles,
};
use zeroize::Zeroizing;

use super::{failure, show::read_certificates};
use crate::arguments::RenewArguments;

/// Issues a certificate for the holder and hosts of an old one, replaces certificate and key, and tells
/// what was done.
///
/// # Errors
/// [`Failure`] if a file cannot be read or written, the certificate is not of the holder that its file
/// name or the arguments say, or the authority is not one that the holder's `ca.pem` trusts.
pub fn renew(arguments: &RenewArguments) -> Result<String, Failure> {
    let path = &arguments.certificate;
    let refuse = |problem: String| Failure::message(FailureClass::Input, problem);
    let old = first_certificate(path)?;
    let identity = old
        .identity
        .clone()
        .map_err(|error| refuse(format!("`{}` cannot be renewed: {error}", path.display())))?;
    check_holder(path, &identity, arguments)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let files = TlsFiles {
        ca: arguments.trust.clone().unwrap_or_else(|| folder.join(AUTHORITY_CERTIFICATE_FILE)),
        certificate: path.clone(),
        key: arguments.key.clone().unwrap_or_else(|| path.with_extension("key")),
    };
    let authority = Authority::load(&arguments.ca).map_err(failure)?;
    check_trust(&files.ca, &authority, &arguments.ca)?;
    let kept = match arguments.keep_key {
        true => Some(read_key(&files.key)?),
        false => None,
    };
    let issued =
        authority.renew(&old, arguments.days, kept.as_ref().map(|key| key.as_str())).map_err(failure)?;
    let new = CertificateInfo::read(&issued.certificate_der())?;
    let files = match &arguments.out {
        Some(out) => issued.save(out).map_err(failure)?,
        None => {
            issued.replace(&files).map_err(failure)?;
            files
        }
    };
    Ok(format!(
        "renewed {identity} until {}: {} has serial {} in place of {}, {} is {}; a running server takes them \
         within seconds",
        utc(new.not_after),
        files.certificate.display(),
        new.serial,
        old.serial,
        files.key.display(),
        if arguments.keep_key { "the same key" } else { "a new key (secret)" },
    ))
}

fn first_certificate(path: &Path) -> Result<CertificateInfo, Failure> {
    let mut certificates =
        read_certificates(path).map_err(|problem| Failure::message(FailureClass::Input, problem))?;
    Ok(certificates.swap_remove(0))
}

fn read_key(path: &PathBuf) -> Result<Zeroizing<String>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        let problem = format!("cannot read the key `{}`: {error}; name it with --key", path.display());
        Failure::message(FailureClass::Input, problem)
    })?;
    Ok(Zeroizing::new(text))
}

/// Refuses a certificate of somebody else than asked for, or in a file that is named after somebody
/// else: renewed, it would spread the mistake.
fn check_holder(path: &Path, identity: &Identity, arguments: &RenewArguments) -> Result<(), Failure> {
    let refuse = |expected: String| {
        let problem = format!(
            "`{}` is the certificate of {identity}, not of {expected}; nothing was renewed",
            path.display()
        );
        Err(Failure::message(FailureClass::Input, problem))
    };
    if let Some(role) = arguments.role.filter(|role| *role != identity.role()) {
        return refuse(format!("role {role}"));
    }
    if let Some(name) = arguments.name.as_ref().filter(|name| *name != identity.name()) {
        return refuse(format!("`{name}`"));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    match identity_of_stem(stem) {
        Some(expected) if expected != *identity => {
            refuse(format!("{expected}, after whom the file is named"))
        }
        _ => Ok(()),
    }
}

/// Whom a file is named after, if it is named as `certs issue` names files.
fn identity_of_stem(stem: &str) -> Option<Identity> {
    if stem.starts_with("server-") {
        let index = stem.strip_prefix("server-")?.parse().ok()?;
        return Identity::server(index).ok();
    }
    let (role, name) = stem.split_once('-')?;
    Identity::new(role.parse().ok()?, name).ok()
}

/// Refuses an authority that the holder's own file does not hold: the server would refuse the new
/// certificate, and so would everybody who has the same file.
fn check_trust(ca: &Path, authority: &Authority, folder: &Path) -> Result<(), Failure> {
    let own = CertificateInfo::read(&authority.certificate_der())?;
    let trusted = read_certificates(ca).map_err(|problem| {
        Failure::message(FailureClass::Input, format!("{problem}; name the holder's ca.pem with --trust"))
    })?;
    if trusted.contains(&own) {
        return Ok(());
    }
    let names: Vec<_> = trusted.iter().map(|authority| authority.subject.as_str()).collect();
    let problem = format!(
        "the authority in `{}` is `{}`, but `{}` trusts {}; to change the authority, first put both \
         certificates into everybody's ca.pem",
        folder.display(),
        own.subject,
        ca.display(),
        names.join(" and ")
    );
    Err(Failure::message(FailureClass::Input, problem))
}

#[cfg(test)]
mod tests {
    use concilium_rpc::identity::Role;

    use super::*;

    fn arguments(ca: &Path, certificate: &Path) -> RenewArguments {
        RenewArguments {
            ca: ca.to_owned(),
            certificate: certificate.to_owned(),
            key: None,
            trust: None,
            role: None,
            name: None,
            days: 400,
            keep_key: false,
            out: None,
        }
    }

    #[test]
    fn a_renewed_certificate_differs_in_serial_key_and_end_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, out) = (folder.path().join("ca"), folder.path().join("out"));
        let authority = Authority::create().unwrap();
        authority.save(&ca).unwrap();
        let hosts = ["host1.example.org".to_owned(), "10.0.0.1".to_owned()];
        let issued = authority.issue(&Identity::server(1).unwrap(), &hosts, 20).unwrap();
        let files = issued.save(&out).unwrap();
        let old = files.load().unwrap();

        let told = renew(&arguments(&ca, &files.certificate)).unwrap();
        let new = files.load().unwrap();
        assert!(told.contains(&new.info().serial) && told.contains(&old.info().serial), "{told}");
        assert_eq!((new.identity(), &new.info().hosts), (old.identity(), &old.info().hosts));
        assert_ne!(new.info().key_id, old.info().key_id);
        assert!(new.info().not_after > old.info().not_after + 300 * 86_400);

        renew(&RenewArguments { keep_key: true, ..arguments(&ca, &files.certificate) }).unwrap();
        let kept = files.load().unwrap();
        assert_eq!(kept.info().key_id, new.info().key_id);
        assert_ne!(kept.info().serial, new.info().serial);

        let elsewhere = folder.path().join("elsewhere");
        renew(&RenewArguments { out: Some(elsewhere.clone()), ..arguments(&ca, &files.certificate) })
            .unwrap();
        assert_eq!(files.load().unwrap().info().serial, kept.info().serial, "the old files stay");
        assert!(elsewhere.join("server-1.key").exists());
    }

    #[test]
    fn somebody_elses_files_and_other_authorities_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, out) = (folder.path().join("ca"), folder.path().join("out"));
        let authority = Authority::create().unwrap();
        authority.save(&ca).unwrap();
        let issue = |role, name: &str| {
            authority.issue(&Identity::new(role, name).unwrap(), &[], 20).unwrap().save(&out).unwrap()
        };
        let alice = issue(Role::Client, "alice");
        let before = fs::read(&alice.certificate).unwrap();
        let refused = |arguments: RenewArguments, needles: &[&str]| {
            let failure = renew(&arguments).unwrap_err();
            assert_eq!(failure.class(), FailureClass::Input, "{failure}");
            for needle in needles {
                assert!(failure.to_string().contains(needle), "{needle}: {failure}");
            }
        };
        let good = arguments(&ca, &alice.certificate);
        refused(
            RenewArguments { role: Some(Role::Owner), ..good.clone() },
            &["client `alice`", "role owner"],
        );
        refused(RenewArguments { name: Some("bob".into()), ..good.clone() }, &["not of `bob`"]);
        refused(RenewArguments { days: 0, ..good.clone() }, &["days"]);
        let misnamed = out.join("server-2.pem");
        fs::copy(&alice.certificate, &misnamed).unwrap();
        refused(arguments(&ca, &misnamed), &["server `server-2`", "named"]);
        refused(arguments(&ca, &out.join("ca.pem")), &["ca.pem", "cannot be renewed"]);
        refused(arguments(&ca, &out.join("none.pem")), &["none.pem"]);

        let other = folder.path().join("other");
        Authority::create().unwrap().save(&other).unwrap();
        refused(
            RenewArguments { ca: other.clone(), ..good.clone() },
            &["trusts Concilium authority", "first put both"],
        );
        assert_eq!(fs::read(&alice.certificate).unwrap(), before, "nothing was replaced");

        // A change of the authority: with both in ca.pem, either may renew.
        let both: String =
            [&ca, &other].map(|folder| fs::read_to_string(folder.join("ca.pem")).unwrap()).concat();
        fs::write(&alice.ca, both).unwrap();
        renew(&RenewArguments { ca: other, ..good }).unwrap();
        assert_eq!(alice.load().unwrap().identity().name(), "alice");
    }
}

//! Who may read the page, and what a browser is told not to do with it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// How a connection came in.
#[derive(Clone)]
pub(super) enum Access {
    /// On a loopback address, from a process of this machine.
    Loopback,
    /// Over TLS; a refusal says who called and what would let them in.
    Identified(Result<(), Arc<str>>),
}

/// Sent with every answer. Nothing inline, nothing from elsewhere, nothing kept, nobody's frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

pub(super) fn add_headers(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The refusal of a request, or `None` if it may be answered.
pub(super) fn refuse<T>(access: &Access, request: &Request<T>) -> Option<Response> {
    let text = |status: StatusCode, line: String| {
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        (status, [(header::CONTENT_TYPE, kind)], Body::from(line + "\n")).into_response()
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let line =
            "the page only shows; use GET. Changes are made with concilium-operator and the configuration";
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, line.to_owned());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    match access {
        Access::Identified(Ok(())) => None,
        Access::Identified(Err(line)) => Some(text(StatusCode::FORBIDDEN, line.to_string())),
        Access::Loopback => {
            let host = host(request);
            if host.is_some_and(is_loopback) {
                return None;
            }
            let seen = host.map_or_else(|| "no host".to_owned(), |host| format!("`{host}`"));
            let line = format!(
                "the request names {seen}, and this page is only served as localhost or 127.0.0.1; to read it \
                 from another machine use an SSH tunnel, or set `web.listen` to an address that is not loopback"
            );
            Some(text(StatusCode::FORBIDDEN, line))
        }
    }
}

/// The host that the request names, as in HTTP/1 or as in HTTP/2.
fn host<T>(request: &Request<T>) -> Option<&str> {
    match request.headers().get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => request.uri().authority().map(Authority::as_str),
    }
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_are_answered() {
        for host in ["localhost", "LOCALHOST:7480", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1", "[::1]:7480"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:7480",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "a b",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    fn status(access: &Access, method: Method, host: Option<&str>) -> Option<StatusCode> {
        let mut request = Request::builder().method(method).uri("/");
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        refuse(access, &request.body(()).unwrap()).map(|response| response.status())
    }

    #[test]
    fn requests_are_refused_for_their_method_host_or_caller() {
        let here = Some("localhost:1");
        assert_eq!(status(&Access::Loopback, Method::GET, here), None);
        assert_eq!(status(&Access::Loopback, Method::HEAD, here), None);
        assert_eq!(status(&Access::Loopback, Method::POST, here), Some(StatusCode::METHOD_NOT_ALLOWED));
        assert_eq!(status(&Access::Loopback, Method::GET, None), Some(StatusCode::FORBIDDEN));
        assert_eq!(status(&Access::Loopback, Method::GET, Some("evil.example")), Some(StatusCode::FORBIDDEN));
        // With a certificate the host's name says nothing.
        assert_eq!(status(&Access::Identified(Ok(())), Method::GET, Some("server-0")), None);
        let refused = Access::Identified(Err("who are you".into()));
        assert_eq!(status(&refused, Method::GET, here), Some(StatusCode::FORBIDDEN));
    }
}

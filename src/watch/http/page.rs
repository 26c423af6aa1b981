//! The page at `/`: one file that asks for `/status` each second. It loads nothing else, and a
//! browser runs nothing in it but its one script, whatever an error's text may contain.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};

const HTML: &str = "text/html; charset=utf-8";
const PAGE: &str = include_str!("page.html");

/// The page and what it may do.
pub(super) struct Page {
    policy: HeaderValue,
}

impl Default for Page {
    fn default() -> Self {
        let (script, style) = (hash("script"), hash("style"));
        let policy = format!(
            "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self {
            policy: policy.parse().expect("a header"),
        }
    }
}

impl Page {
    pub(super) fn answer(&self) -> Response<Full<Bytes>> {
        let mut page = super::respond(StatusCode::OK, HTML, PAGE.to_owned());
        let headers = page.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
        headers.insert(REFERRER_POLICY, fixed("no-referrer"));
        page
    }
}

/// What names the one element of this kind in a policy (CSP Level 3, 2.3.1).
fn hash(element: &str) -> String {
    let (_, inside) = PAGE
        .split_once(&format!("<{element}>"))
        .expect("the page has it");
    let (inside, _) = inside
        .split_once(&format!("</{element}>"))
        .expect("it is closed");
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside)))
}

//! A client's connection as the server sees it: what it has subscribed to, and what waits for it.

use std::collections::BTreeMap;
use std::task::Waker;

use tokio::time::Instant;

use super::hub::Reply;
use super::subject;
use super::wire::Published;

/// A client's connection.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) output: Vec<u8>,
    pub(super) closing: bool,
    pub(super) waker: Option<Waker>,
    pub(super) connected: bool,
    pub(super) signed_in: bool,
    pub(super) subscriptions: Vec<Subscription>,
    /// Answers that are late, by when they go out and the order in which they were made.
    pub(super) late: BTreeMap<(Instant, u64), (Vec<u8>, Reply)>,
    pub(super) made: u64,
}

pub(super) struct Subscription {
    pub(super) subject: Vec<u8>,
    pub(super) number: Vec<u8>,
    /// How many messages are left of those that were wanted.
    pub(super) left: Option<u64>,
}

impl Connection {
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn unsubscribe(&mut self, number: &[u8], after: Option<u64>) {
        match after {
            None | Some(0) => self.subscriptions.retain(|it| it.number != number),
            Some(_) => {
                let mut all = self.subscriptions.iter_mut();
                if let Some(found) = all.find(|it| it.number == number) {
                    found.left = after;
                }
            }
        }
    }

    pub(super) fn end_denied(&mut self, denied: &[String]) {
        let output = &mut self.output;
        let before = self.subscriptions.len();
        self.subscriptions.retain(|it| {
            let mut denied = denied.iter();
            let ends = denied.any(|pattern| subject::matches(pattern.as_bytes(), &it.subject));
            if ends {
                let (subject, number) = (&it.subject, &it.number);
                let (subject, number) = (
                    String::from_utf8_lossy(subject),
                    String::from_utf8_lossy(number),
                );
                let told = format!(
                    "-ERR 'Permissions Violation for Subscription to \"{subject}\" \
                     (sid \"{number}\")'\r\n"
                );
                output.extend_from_slice(told.as_bytes());
            }
            !ends
        });
        if self.subscriptions.len() < before {
            self.wake();
        }
    }

    pub(super) fn deliver(&mut self, published: &Published<'_>) -> bool {
        let mut delivered = false;
        let mut ended = false;
        for subscription in &mut self.subscriptions {
            if !subject::matches(&subscription.subject, published.subject) {
                continue;
            }
            delivered = true;
            push_message(&mut self.output, &subscription.number, published);
            if let Some(left) = &mut subscription.left {
                *left -= 1;
                ended |= *left == 0;
            }
        }
        if ended {
            self.subscriptions.retain(|it| it.left != Some(0));
        }
        if delivered {
            self.wake();
        }
        delivered
    }
}

fn push_message(output: &mut Vec<u8>, subscription: &[u8], message: &Published<'_>) {
    let Published {
        subject,
        reply,
        headers,
        body,
    } = message;
    let name: &[u8] = if headers.is_empty() {
        b"MSG "
    } else {
        b"HMSG "
    };
    output.extend_from_slice(name);
    for field in [*subject, subscription, *reply] {
        if !field.is_empty() {
            output.extend_from_slice(field);
            output.push(b' ');
        }
    }
    let mut digits = itoa::Buffer::new();
    if !headers.is_empty() {
        output.extend_from_slice(digits.format(headers.len()).as_bytes());
        output.push(b' ');
    }
    output.extend_from_slice(digits.format(headers.len() + body.len()).as_bytes());
    output.extend_from_slice(b"\r\n");
    output.extend_from_slice(headers);
    output.extend_from_slice(body);
    output.extend_from_slice(b"\r\n");
}

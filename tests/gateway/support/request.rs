//! A request as bytes, exactly as the test writes it.

/// A request builder. It adds only `Host`, and `Content-Length` where there is a body.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        let headers = vec![("Host".to_owned(), "gateway.test".to_owned())];
        Self { method: method.to_owned(), target: target.to_owned(), headers, body: None }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    /// `Authorization: Bearer …`
    pub(crate) fn bearer(self, secret: &str) -> Self {
        self.header("Authorization", &format!("Bearer {secret}"))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    /// The head alone, for tests that send the body by themselves.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        if let Some(body) = &self.body {
            text.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

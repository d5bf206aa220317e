//! What a client must change to use the gateway. The lines are those of `deploy/clients`, with the address and the
//! region filled in. A test compares them.

use clap::ValueEnum;

use super::Credential;
use crate::cli::health::reachable;
use crate::config::Config;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Client {
    Curl,
    Terraform,
    Python,
    Go,
    Node,
    Java,
}

/// The address and the region in the lines.
const BASE_URL: &str = "http://127.0.0.1:8080";
const REGION: &str = "CN_NORTH_4";

/// For clients that are built with a region.
const SDK_VARIABLES: &[&str] = &[
    "export HUAWEICLOUD_SDK_REGION_WORKSPACE_CN_NORTH_4=http://127.0.0.1:8080",
    "export HUAWEICLOUD_SDK_REGION_WORKSPACEAPP_CN_NORTH_4=http://127.0.0.1:8080",
];

impl Client {
    /// The page in the sources.
    pub(super) fn page(self) -> &'static str {
        match self {
            Self::Curl => "deploy/clients/curl.md",
            Self::Terraform => "deploy/clients/terraform.md",
            Self::Python => "deploy/clients/python-sdk.md",
            Self::Go => "deploy/clients/go-sdk.md",
            Self::Node => "deploy/clients/node-sdk.md",
            Self::Java => "deploy/clients/java-sdk.md",
        }
    }

    /// What to change in the code or configuration of the client.
    fn change(self) -> &'static [&'static str] {
        match self {
            Self::Curl => {
                &[r#"curl -i -H "X-Auth-Token: $TOKEN" "http://127.0.0.1:8080/v2/$PROJECT/products?os_type=Linux""#]
            }
            Self::Terraform => &[
                "endpoints = {",
                r#"  workspace = "http://127.0.0.1:8080/""#,
                r#"  appstream = "http://127.0.0.1:8080/""#,
                "}",
            ],
            Self::Python => &[r#".with_endpoint("http://127.0.0.1:8080")"#],
            Self::Go => &[r#"WithEndpoint("http://127.0.0.1:8080")."#],
            Self::Node | Self::Java => &[r#".withEndpoint("http://127.0.0.1:8080")"#],
        }
    }

    /// How an SDK sends a token. `None`: no line of code.
    fn token(self) -> Option<&'static str> {
        match self {
            Self::Python => Some(r#"client.preset_headers["X-Auth-Token"] = token"#),
            Self::Go => Some(r#"hc.WithExtraHeaders(map[string]string{"X-Auth-Token": token})"#),
            Self::Java => Some(r#"client.listProductsInvoker(request).addHeader("X-Auth-Token", token).invoke()"#),
            Self::Curl | Self::Terraform | Self::Node => None,
        }
    }

    pub(super) fn lines(self, config: &Config, credential: Credential) -> String {
        let region = config.settings.region.as_ref().map(|region| region.to_string());
        let begin = match self {
            Self::Curl => "Send this twice, with an IAM token and a project id. The second response comes from memory:",
            Self::Terraform => "Add to provider \"huaweicloud\":",
            _ => "Change the client's endpoint:",
        };
        let mut text = format!("{begin}\n{}", indented(self.change()));
        if matches!(self, Self::Python | Self::Go | Self::Java) && region.is_some() {
            text += &format!(
                "\nOr, without a change of code, if the client is built with a region:\n{}",
                indented(SDK_VARIABLES)
            );
        }
        if let Some(line) = self.token().filter(|_| credential == Credential::Token) {
            text += &format!("\nSend the token:\n{}", indented(&[line]));
        }
        match (self, credential) {
            (Self::Curl, Credential::AccessKey) => {
                text += "\ncurl sends a token. The access key is for SDKs and Terraform.\n";
            }
            (Self::Terraform, Credential::Token) => {
                text +=
                    "\nEach run has a new token and gets no stored lists in an outage. With an access key it does.\n";
            }
            _ => {}
        }
        let region = region.unwrap_or_default().to_ascii_uppercase().replace('-', "_");
        text.replace(BASE_URL, &base_url(config)).replace(REGION, &region)
    }
}

fn indented(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
    format!("\n{lines}")
}

/// The URL for clients on this machine.
fn base_url(config: &Config) -> String {
    let listen = &config.settings.listen;
    let scheme = if listen.has_tls() { "https" } else { "http" };
    format!("{scheme}://{}", reachable(listen.proxy.0))
}

//! The environment variables of OpenTelemetry's specification, as settings of `[otlp]`. A variable that is set but empty
//! counts as not set.

use std::ffi::OsString;

use toml::Value;

use crate::config::secret::Secret;
use crate::config::{ConfigError, Override};

/// A variable, and the setting that it is for.
type Variable = (&'static str, &'static [&'static str], Form);

/// How the value of a variable becomes that of a setting.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// The setting is a duration.
    Milliseconds,
    Number,
    /// The setting says whether the signal is exported.
    Exporter,
    /// The value itself must not be shown.
    Secret,
}

const VARIABLES: [Variable; 18] = [
    ("OTEL_EXPORTER_OTLP_PROTOCOL", &["otlp", "protocol"], Form::Text),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["otlp", "endpoint"], Form::Text),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["otlp", "traces_endpoint"], Form::Text),
    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &["otlp", "metrics_endpoint"], Form::Text),
    ("OTEL_EXPORTER_OTLP_HEADERS", &["otlp", "headers"], Form::Secret),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", &["otlp", "ca_file"], Form::Text),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", &["otlp", "timeout"], Form::Milliseconds),
    ("OTEL_TRACES_EXPORTER", &["otlp", "traces"], Form::Exporter),
    ("OTEL_TRACES_SAMPLER", &["otlp", "sampler"], Form::Text),
    ("OTEL_TRACES_SAMPLER_ARG", &["otlp", "sampling_rate"], Form::Number),
    ("OTEL_BSP_MAX_QUEUE_SIZE", &["otlp", "max_queue"], Form::Number),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &["otlp", "max_batch"], Form::Number),
    ("OTEL_BSP_SCHEDULE_DELAY", &["otlp", "batch_delay"], Form::Milliseconds),
    ("OTEL_BSP_EXPORT_TIMEOUT", &["otlp", "retry_for"], Form::Milliseconds),
    ("OTEL_METRICS_EXPORTER", &["otlp", "metrics"], Form::Exporter),
    ("OTEL_METRIC_EXPORT_INTERVAL", &["otlp", "metrics_interval"], Form::Milliseconds),
    ("OTEL_SERVICE_NAME", &["otlp", "service_name"], Form::Text),
    ("OTEL_RESOURCE_ATTRIBUTES", &["otlp", "resource_attributes"], Form::Text),
];

/// Variables that change nothing with this value, and have no other that is supported.
const FIXED: [(&str, &str); 3] = [
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
    ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
];

/// Variables that are not supported, with what to use.
const UNSUPPORTED: [(&str, &str); 10] = [
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
    ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "a receiver that needs no client certificate"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "a receiver that needs no client certificate"),
];

/// The settings that the variables say.
///
/// # Errors
/// If a variable is not supported, or an exporter is unknown.
pub(super) fn overrides(environment: &impl Fn(&str) -> Option<OsString>) -> Result<Vec<Override>, ConfigError> {
    let given = |name: &str| {
        let value = environment(name).filter(|value| !value.is_empty());
        value.map(|value| value.to_string_lossy().into_owned())
    };
    const DISABLED: &str = "OTEL_SDK_DISABLED";
    if given(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        // The others are for nobody then, whatever they say.
        let off = |path| Override { path, value: Value::Boolean(false), origin: DISABLED.to_owned() };
        return Ok(vec![off(&["otlp", "traces"]), off(&["otlp", "metrics"])]);
    }
    if let Some((name, expected)) = UNSUPPORTED.into_iter().find(|(name, _)| given(name).is_some()) {
        return Err(wrong(name, format!("is not supported: expected {expected}")));
    }
    if let Some((name, expected)) =
        FIXED.into_iter().find(|(name, fixed)| given(name).is_some_and(|value| value != *fixed))
    {
        return Err(wrong(name, format!("the value is not supported: expected {expected}")));
    }
    let mut overrides = Vec::new();
    for (name, path, form) in VARIABLES {
        if let Some(text) = given(name) {
            overrides.push(Override { path, value: value(name, text, form)?, origin: name.to_owned() });
        }
    }
    Ok(overrides)
}

fn value(name: &str, text: String, form: Form) -> Result<Value, ConfigError> {
    Ok(match form {
        Form::Text => text.into(),
        Form::Secret => Secret::Environment(name.to_owned()).to_value(),
        Form::Milliseconds => {
            let number = text.parse::<u32>().ok().filter(|&number| number > 0);
            let wrong = || wrong(name, format!("{text:?} is not allowed: expected a number of milliseconds, from 1"));
            format!("{}ms", number.ok_or_else(wrong)?).into()
        }
        Form::Number => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => text.into(),
        },
        Form::Exporter => match text.as_str() {
            "otlp" => true.into(),
            "none" => false.into(),
            // Metrics are there for Prometheus in any case.
            "prometheus" if name == "OTEL_METRICS_EXPORTER" => false.into(),
            _ => return Err(wrong(name, format!("{text:?} is not allowed: expected otlp or none"))),
        },
    })
}

fn wrong(origin: &str, message: String) -> ConfigError {
    ConfigError::Invalid { origin: origin.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Config::from_layers("", "region = \"r-1\"", &overrides(&find)?)
    }

    #[test]
    fn every_variable_reaches_its_setting() {
        let given = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "protocol = \"http/protobuf\""),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a.example", "\nendpoint = \"https://a.example\""),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://b.example/t", "traces_endpoint = \"https://b.example/t\""),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://[::1]/m", "metrics_endpoint = \"http://[::1]/m\""),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem", "ca_file = \"ca.pem\""),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500", "timeout = \"1s 500ms\""),
            ("OTEL_TRACES_EXPORTER", "none", "traces = false"),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off", "sampler = \"parentbased_always_off\""),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25", "sampling_rate = 0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "17", "max_queue = 17"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7", "max_batch = 7"),
            ("OTEL_BSP_SCHEDULE_DELAY", "250", "batch_delay = \"250ms\""),
            ("OTEL_BSP_EXPORT_TIMEOUT", "9000", "retry_for = \"9s\""),
            ("OTEL_METRICS_EXPORTER", "otlp", "metrics = true"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "30000", "metrics_interval = \"30s\""),
            ("OTEL_SERVICE_NAME", "mine", "service_name = \"mine\""),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b%20c", "resource_attributes = \"a=b%20c\""),
        ];
        // The headers are a secret, which is read where it is.
        assert_eq!(given.len() + 1, VARIABLES.len());
        let variables: Vec<_> = given.iter().map(|&(name, value, _)| (name, value)).collect();
        let config = load(&variables).unwrap();
        let text = config.to_toml();
        for (name, _, shown) in given {
            assert!(text.contains(shown), "{name}: {shown}: {text}");
        }
        let otlp = config.otlp.unwrap();
        assert!(otlp.traces.is_none());
        assert_eq!(otlp.metrics.unwrap().to_string(), "http://[::1]/m");
        assert_eq!(otlp.resource, [("a", "b c"), ("service.name", "mine")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn a_service_name_counts_more_than_an_attribute_and_that_more_than_the_default() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        let attribute = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=attribute");
        let name = |variables: &[(&str, &str)]| {
            let names = load(variables).unwrap().otlp.unwrap().resource.into_iter();
            names.filter(|(name, _)| name == "service.name").map(|(_, value)| value).collect::<Vec<_>>()
        };
        assert_eq!(name(&[endpoint]), ["workspace-gateway"]);
        assert_eq!(name(&[endpoint, attribute]), ["attribute"]);
        assert_eq!(name(&[endpoint, attribute, ("OTEL_SERVICE_NAME", "set")]), ["set"]);
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint_or_if_it_is_disabled() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        let urls = |variables: &[(&str, &str)]| {
            let otlp = load(variables).unwrap().otlp?;
            Some([otlp.traces, otlp.metrics].map(|url| url.map(|url| url.to_string())))
        };
        assert_eq!(urls(&[]), None);
        let [traces, metrics] = ["traces", "metrics"].map(|path| Some(format!("http://127.0.0.1:4318/v1/{path}")));
        assert_eq!(urls(&[endpoint]), Some([traces, metrics.clone()]));
        assert_eq!(urls(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Some([None, metrics]));
        let disabled = ("OTEL_SDK_DISABLED", "TRUE");
        for other in [("OTEL_TRACES_EXPORTER", "console"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b"), endpoint] {
            assert_eq!(urls(&[endpoint, disabled, other]), None, "{other:?}");
        }
        let traces_only = urls(&[endpoint, ("OTEL_METRICS_EXPORTER", "prometheus")]).unwrap();
        assert!(traces_only[0].is_some() && traces_only[1].is_none());
        let grpc = urls(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap();
        assert_eq!(grpc, [Some(endpoint.1.to_owned()), Some(endpoint.1.to_owned())]);
    }

    #[test]
    fn a_wrong_variable_is_named_with_what_is_allowed() {
        for (name, value, expected) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", "expected an http or https URL"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "expected http/protobuf or grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "expected none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "expected a number of milliseconds"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=secret", "expected OTEL_EXPORTER_OTLP_HEADERS"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "expected otlp or none"),
            ("OTEL_TRACES_SAMPLER", "xray", "expected always_on"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5", "expected a number from 0 to 1"),
            ("OTEL_TRACES_SAMPLER_ARG", "half", "expected a number from 0 to 1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "expected a number from 1 to 1000000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a", "expected name=value"),
        ] {
            let error = load(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}

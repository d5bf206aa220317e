// The form that has a request explained. A credential is sent in the body of a POST, and is in the form only until then.

/** Header fields that may have a credential. */
const CREDENTIALS = /^\s*(x-auth-token|authorization|proxy-authorization|x-security-token|x-subject-token|cookie)\s*:/i;

async function explain() {
    const [url, secret, headers] = ["explain-url", "explain-token", "explain-headers"].map((id) => byId(id).value.trim());
    if (url === "") {
        byId("explain-url").focus();
        return;
    }
    const lines = headers.split("\n").filter((line) => line.trim() !== "");
    const form = new URLSearchParams([["method", byId("explain-method").value], ["url", url], ...lines.map((line) => ["header", line])]);
    if (secret !== "") {
        form.append("header", `X-Auth-Token: ${secret}`);
    }
    byId("explain-token").value = "";
    byId("explain-headers").value = lines.filter((line) => !CREDENTIALS.test(line)).join("\n");
    byId("explained").hidden = false;
    showExplained("", "Asking …", "");
    try {
        const response = await request("explain", AbortSignal.timeout(TIMEOUT), form);
        const explanation = await response.json();
        const { action, sentence } = explanation.verdict;
        showExplained(action, `${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}.`, JSON.stringify(explanation, null, 2));
    } catch (error) {
        showExplained("not explained", describe(error), "");
    }
    announce(byId("explain-sentence").textContent);
}

function showExplained(action, sentence, text) {
    byId("explain-action").hidden = action === "";
    say(byId("explain-action"), action);
    say(byId("explain-sentence"), sentence);
    say(byId("explain-text"), text);
    byId("explain-more").hidden = text === "";
}

byId("explain-form").addEventListener("submit", (event) => {
    event.preventDefault();
    explain();
});

function clearExplained() {
    byId("explained").hidden = true;
    byId("explain-form").reset();
    showExplained("", "", "");
}

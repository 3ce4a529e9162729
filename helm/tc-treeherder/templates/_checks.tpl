{{/* What a schema cannot say, or not so that it helps, or not without showing a secret: all that is wrong, each with what
     to do. */}}
{{- define "tc-treeherder.checks" -}}
{{- $wrong := list -}}
{{- with .Values -}}

{{- if not .image.repository -}}
{{- $wrong = append $wrong "image.repository is empty: build the image with bin/build-image, push it, and name it here" -}}
{{- end -}}

{{- if .existingSecret -}}
{{- if .database.url -}}
{{- $wrong = append $wrong "database.url and existingSecret are both set: put the url into that Secret, as TC_TREEHERDER_DATABASE_URL" -}}
{{- end -}}
{{- if or .secrets.webhook .secrets.tokens .secrets.environments .secrets.pulse.url .secrets.sentryDsn .secrets.taskcluster.accessToken .secrets.taskcluster.certificate -}}
{{- $wrong = append $wrong "secrets and existingSecret are both set: put all of them into that Secret, under the keys that the chart's README.md lists" -}}
{{- end -}}
{{- else -}}
{{- if and (not .database.url) (not .persistence.enabled) -}}
{{- $wrong = append $wrong "database.url is empty: set it to postgresql+psycopg://USER:PASSWORD@HOST/NAME; or set persistence.enabled and replicas: 1, for SQLite on a volume" -}}
{{- end -}}
{{- if not .secrets.webhook -}}
{{- $wrong = append $wrong "secrets.webhook is empty, and listeners sign what they send: make one with echo whsec_$(openssl rand -base64 32)" -}}
{{- end -}}
{{- range $number, $secret := .secrets.webhook -}}
{{- if not (regexMatch "^(whsec_)?[A-Za-z0-9+/]{32,}=*$" $secret) -}}
{{- $wrong = append $wrong (printf "secrets.webhook[%d] is not whsec_ and base64 of at least 24 random bytes: make one with echo whsec_$(openssl rand -base64 32)" $number) -}}
{{- end -}}
{{- end -}}
{{- if not (or .secrets.tokens .settings.taskcluster_logins (default dict .settings.web_sign_in).client_id) -}}
{{- $wrong = append $wrong "secrets.tokens is empty, and without anybody who may call it the service does not start: give at least {name: …, value: …, scopes: […]}, or set settings.taskcluster_logins or settings.web_sign_in.client_id" -}}
{{- end -}}
{{- $names := dict -}}
{{- range $number, $token := .secrets.tokens -}}
{{- if hasKey $names $token.name -}}
{{- $wrong = append $wrong (printf "secrets.tokens[%d] and secrets.tokens[%v] have the same name %q, but the log names callers by it: rename one" $number (get $names $token.name) $token.name) -}}
{{- else -}}
{{- $_ := set $names $token.name $number -}}
{{- end -}}
{{- end -}}
{{- if and .listeners.pulse.enabled (not .secrets.pulse.url) -}}
{{- $wrong = append $wrong "secrets.pulse.url is empty: set it to amqps://USER:PASSWORD@pulse.mozilla.org:5671/%2F, or listeners.pulse.enabled to false (then no button of Treeherder works, and no jobs are reported)" -}}
{{- end -}}
{{- with .database.url -}}
{{- if not (hasPrefix "postgresql+psycopg://" .) -}}
{{- $wrong = append $wrong "database.url does not begin with postgresql+psycopg://: it must be postgresql+psycopg://USER:PASSWORD@HOST/NAME" -}}
{{- end -}}
{{- end -}}
{{- with .secrets.pulse.url -}}
{{- if not (regexMatch "^amqps?://." .) -}}
{{- $wrong = append $wrong "secrets.pulse.url does not begin with amqps://: it must be amqps://USER:PASSWORD@pulse.mozilla.org:5671/%2F" -}}
{{- end -}}
{{- end -}}
{{- range $prefix, $_ := .secrets.environments -}}
{{- if not (hasKey (default dict $.Values.settings.environments) $prefix) -}}
{{- $wrong = append $wrong (printf "secrets.environments.%s has no settings.environments.%s: give its url and client_id there" $prefix $prefix) -}}
{{- end -}}
{{- end -}}
{{- range $prefix, $environment := .settings.environments -}}
{{- range $name := list "pushes" "jobs" -}}
{{- $how := include "tc-treeherder.transport" (list $environment $name) -}}
{{- if and (eq $how "rest") (not (get $.Values.secrets.environments $prefix)) -}}
{{- $wrong = append $wrong (printf "settings.environments.%s.%s is rest, which needs the secret of a Treeherder Hawk client: put it into secrets.environments.%s, or set %s to pulse or off" $prefix $name $prefix $name) -}}
{{- end -}}
{{- if and (eq $how "pulse") (not $.Values.secrets.pulse.url) -}}
{{- $wrong = append $wrong (printf "settings.environments.%s.%s is pulse, which needs secrets.pulse.url: set it to amqps://USER:PASSWORD@pulse.mozilla.org:5671/%%2F" $prefix $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (dig "taskcluster" "client_id" "" .settings) (not .secrets.taskcluster.accessToken) -}}
{{- $wrong = append $wrong "settings.taskcluster.client_id has no secrets.taskcluster.accessToken: calls to Taskcluster would have no credentials; put the client's access token there" -}}
{{- end -}}
{{- if and .secrets.taskcluster.accessToken (not (dig "taskcluster" "client_id" "" .settings)) -}}
{{- $wrong = append $wrong "secrets.taskcluster.accessToken has no settings.taskcluster.client_id: name the client that it belongs to there" -}}
{{- end -}}
{{- end -}}

{{- range $prefix, $environment := .settings.environments -}}
{{- if not $environment.url -}}
{{- $wrong = append $wrong (printf "settings.environments.%s.url is missing: set it to the URL of that Treeherder, such as https://treeherder.mozilla.org" $prefix) -}}
{{- end -}}
{{- range $name := list "pushes" "jobs" -}}
{{- if and (eq (include "tc-treeherder.transport" (list $environment $name)) "rest") (not $environment.client_id) -}}
{{- $wrong = append $wrong (printf "settings.environments.%s.client_id is missing: %s is rest, which needs client_id and secret of a Treeherder Hawk client; or set %s to pulse or off" $prefix $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $signIn := default dict .settings.web_sign_in -}}
{{- if and $signIn.client_id (not .settings.public_url) (not $signIn.redirect_url) -}}
{{- $wrong = append $wrong "settings.web_sign_in.client_id needs settings.public_url, which Taskcluster leads people back to: set it to the URL at which people reach this service" -}}
{{- end -}}
{{- if and .settings.taskcluster_logins (not .settings.public_url) -}}
{{- $wrong = append $wrong "settings.taskcluster_logins needs settings.public_url, because a signature includes the called address: set it to the URL at which callers reach this service" -}}
{{- end -}}

{{- if and .database.url .persistence.enabled -}}
{{- $wrong = append $wrong "database.url and persistence.enabled are both set: choose PostgreSQL or SQLite" -}}
{{- end -}}
{{- if and .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- $wrong = append $wrong (printf "autoscaling.minReplicas is %d, above maxReplicas %d" (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and .ingress.enabled (not .ingress.hosts) -}}
{{- $wrong = append $wrong "ingress.hosts is empty: name the host that the API is to have, or leave ingress.enabled false" -}}
{{- end -}}

{{- $drain := dig "work" "drain" 20 .settings -}}
{{- if and (or (kindIs "float64" $drain) (kindIs "int" $drain) (kindIs "int64" $drain)) (lt (float64 .terminationGracePeriodSeconds) (addf $drain 25)) -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %d: set it to %v or more, which is settings.work.drain and 25, or work under way is cut off" (int .terminationGracePeriodSeconds) (addf $drain 25)) -}}
{{- end -}}

{{- /* The ConfigMap is no place for secrets, and what the chart sets itself would be lost. */ -}}
{{- $elsewhere := dict
    "database_url" "put it into database.url"
    "host" "the image sets it; where 0.0.0.0 does not do, set TC_TREEHERDER_HOST in extraEnv"
    "port" "containers listen on 8080; service.port is the one that others see"
    "tokens" "put them into secrets.tokens"
    "webhook_secrets" "put them into secrets.webhook"
    "taskcluster.access_token" "put it into secrets.taskcluster.accessToken"
    "taskcluster.certificate" "put it into secrets.taskcluster.certificate"
    "pulse.url" "put it into secrets.pulse.url"
    "sentry_dsn" "put it into secrets.sentryDsn"
    "service_url" "the chart sets it"
    "probe_host" "the chart sets it"
    "probe_port" "the chart sets it"
    "pulse_url" "put it into secrets.pulse.url" -}}
{{- range $place, $settings := dict "settings" .settings "settings.listeners" (default dict .settings.listeners) -}}
{{- range $name, $remedy := $elsewhere -}}
{{- $parts := splitList "." $name -}}
{{- $outer := get $settings (first $parts) -}}
{{- if or (and (eq (len $parts) 1) (hasKey $settings $name)) (and (eq (len $parts) 2) (kindIs "map" $outer) (hasKey (default dict $outer) (last $parts))) -}}
{{- $wrong = append $wrong (printf "%s.%s does not belong there: %s" $place $name $remedy) -}}
{{- end -}}
{{- end -}}
{{- range $prefix, $environment := default dict (get $settings "environments") -}}
{{- if hasKey $environment "secret" -}}
{{- $wrong = append $wrong (printf "%s.environments.%s.secret does not belong there: put it into secrets.environments.%s" $place $prefix $prefix) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\nthese values will not do:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}

{{/* How an environment is told of pushes or jobs, as service and settings have it: (list environment "pushes"|"jobs") */}}
{{- define "tc-treeherder.transport" -}}
{{- $environment := index . 0 -}}
{{- $name := index . 1 -}}
{{- $default := ternary "rest" (ternary "rest" "off" (not (empty $environment.client_id))) (eq $name "pushes") -}}
{{- $how := $default -}}
{{- if hasKey $environment $name -}}
{{- $how = get $environment $name -}}
{{- end -}}
{{- ternary "off" (toString $how) (eq (toString $how) "false") -}}
{{- end -}}

#!/bin/sh
# Archives the handler, writes what TorchServe reads, and starts it; needs `java` on the PATH.
set -e
here=$(dirname "$0")
rm -rf store && mkdir store

cat > model.yaml <<YAML
minWorkers: $PEER_WORKERS
maxWorkers: $PEER_WORKERS
batchSize: $PEER_MAX_BATCH
maxBatchDelay: $(python -c "print(round($PEER_WAIT_S * 1000))")
responseTimeout: $PEER_TIMEOUT_S
YAML
torch-model-archiver --model-name classifier --version 1 --handler "$here/handler.py" \
  --config-file model.yaml --export-path store

cat > config.properties <<PROPERTIES
inference_address=http://127.0.0.1:$PEER_PORT
management_address=http://127.0.0.1:$((PEER_PORT + 1))
metrics_address=http://127.0.0.1:$((PEER_PORT + 2))
model_store=store
load_models=classifier.mar
default_response_timeout=$PEER_TIMEOUT_S
disable_token_authorization=true
disable_system_metrics=true
PROPERTIES

cat > log4j2.xml <<XML
<Configuration status="ERROR">
  <Appenders>
    <Console name="console" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %p %c %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="warn"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
XML
exec torchserve --start --foreground --ncs --disable-token-auth --ts-config config.properties \
  --model-store store --models classifier.mar --log-config log4j2.xml

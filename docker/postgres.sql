-- Run once, when Postgres makes its data folder; `prefect` is the database that it makes by itself.
CREATE DATABASE mlflow;

# Rscript glmnet.R TABLE ALPHA FAMILY LEAST MOST COUNT: cv.glmnet on given folds, the second of two runs measured.
# Prints seconds of the processor and of the clock with the growth of memory and its peak; 0; the best penalty.
suppressMessages(library(glmnet))
args <- commandArgs(TRUE)
d <- as.matrix(read.csv(args[1]))
p <- ncol(d) - 2
x <- d[, 1:p]
grid <- exp(seq(log(as.numeric(args[5])), log(as.numeric(args[4])), length.out = as.integer(args[6])))
bytes <- function(name) {
  line <- grep(name, readLines("/proc/self/status"), value = TRUE)
  1024 * as.numeric(gsub("[^0-9]", "", line))
}
for (i in 1:2) {
  gc()
  writeLines("5", "/proc/self/clear_refs") # the peak so far is forgotten
  before <- bytes("^VmRSS")
  start <- proc.time()
  found <- cv.glmnet(x, d[, p + 1], family = args[3], alpha = as.numeric(args[2]), lambda = grid, foldid = d[, p + 2] + 1,
                     standardize = FALSE, type.measure = if (args[3] == "binomial") "deviance" else "mse")
  spent <- proc.time() - start
}
cat(spent[1] + spent[2], spent[3], bytes("^VmHWM") - before, bytes("^VmHWM"), "\n")
cat(0, "\n")
cat(format(found$lambda.min, digits = 17), "\n")

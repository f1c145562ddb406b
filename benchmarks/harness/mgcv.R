# Rscript mgcv.R TABLE SEGMENTS METHOD: an additive model of P-splines, the second of two runs measured.
# Prints seconds of the processor and of the clock with the growth of memory and its peak; the degrees of freedom; the fitted values.
suppressMessages(library(mgcv))
args <- commandArgs(TRUE)
d <- read.csv(args[1])
segments <- as.integer(args[2])
names <- names(d)[1:(ncol(d) - 1)]
knots <- lapply(names, function(v) {
  r <- range(d[[v]])
  r[1] + (r[2] - r[1]) / segments * (-3:(segments + 3))
})
names(knots) <- names
terms <- paste0("s(", names, ", bs='ps', k=", segments + 3, ")", collapse = " + ")
bytes <- function(name) {
  line <- grep(name, readLines("/proc/self/status"), value = TRUE)
  1024 * as.numeric(gsub("[^0-9]", "", line))
}
for (i in 1:2) {
  gc()
  writeLines("5", "/proc/self/clear_refs") # the peak so far is forgotten
  before <- bytes("^VmRSS")
  start <- proc.time()
  g <- gam(as.formula(paste("y ~", terms)), data = d, method = args[3], knots = knots,
           control = gam.control(scalePenalty = FALSE, nthreads = 1))
  spent <- proc.time() - start
}
cat(spent[1] + spent[2], spent[3], bytes("^VmHWM") - before, bytes("^VmHWM"), "\n")
cat(format(sum(g$edf), digits = 17), "\n")
cat(format(unname(g$fitted.values), digits = 17), "\n")
